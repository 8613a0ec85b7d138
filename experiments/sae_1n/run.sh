#!/usr/bin/env bash
# From the repository root: run.sh <study> [<overrides>], e.g. run.sh camelyon16_conch paths.data=/data trainer=cpu
# Studies: camelyon16_{conch,uni,resnet50}, panda_{conch,uni,resnet50,radboud,karolinska}. `mil=sae1n` is the published recipe;
# with `sae=batch_topk_sae1n train=sae1n selection=sae1n` behind the study SAE and selection are too, defects included.
set -euo pipefail
study=$1
shift
folds='fold=range(5)'
case "$study" in panda_*) folds='fold=0' ;; esac
python -m src.run -m exp="$study" mil=sae1n "$folds" task=pipeline "$@"
python -m src.run exp="$study" mil=sae1n task=summarize_cv "$@"   # analysis/table.csv and table.tex: beside the published numbers
python -m experiments.sae_1n.tables runs "$study"
