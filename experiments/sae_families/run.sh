#!/usr/bin/env bash
# From the repository root. $1: the folder with real weights and images (see tokens.py). Runs go to runs/.
set -euo pipefail
tokens=data/bccd_mobilenetv2
python -m experiments.sae_families.tokens "$1" "$tokens"
python -m src.run exp=quickstart task=pipeline   # makes the slides and their features, where they are missing

on_quickstart="exp=quickstart"
on_tokens="exp=features name=bccd_mobilenetv2 dataset.dir=$tokens dataset.splits_dir=$tokens/splits dataset.positive_class=platelets
  dataset.standardize=true sae.expansion=2 train.epochs=10 train.batch_size=2048 train.n_validations=4"

grid() {  # $1: the data; $2: weights of the L1 penalty
  local data=$1
  for task in train_sae evaluate_sae; do
    run() { python -m src.run -m $data task=$task "$@"; }
    run sae=batch_topk,topk,matryoshka_batch_topk,archetypal sae.k=8,16,32
    run sae=jumprelu sae.target_l0=8,16,32
    run sae=relu_l1,gated,p_anneal sae.l1_coefficient="$2"
    run sae=batch_topk,archetypal sae.k=16 seed=1,2,3,4
  done
}
grid "$on_quickstart" 0.003,0.01,0.03
grid "$on_tokens" 0.001,0.003,0.01
python -m experiments.sae_families.frontier runs experiments/sae_families
