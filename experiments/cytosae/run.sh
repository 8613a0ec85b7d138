#!/usr/bin/env bash
# From the repository root. $1: MLL23 (a folder a class). $2: DinoBloom-B.pth. $3: AML-Hehr's data/ (subtypes, patients).
# For images and a csv of your own: exp=cytosae dataset.listing.csv=<csv> dataset.listing.columns.case=<patients>.
set -euo pipefail
mll23=(exp=mll23_dinobloom "dataset.dir=$1" "backbone.checkpoint=$2")
# Latents of 49,152 neurons on all tokens are many: the SAE computes them in the one pass that reads them.
for task in metadata embed splits train_sae summarize_latents; do
    python -m src.run "${mll23[@]}" "task=$task"
done

# The patients, all of their images: nothing is fitted on them. The same with dataset=acevedo, matek and bmc.
hehr=(exp=hehr_dinobloom "dataset.dir=$3" "backbone.checkpoint=$2" fold=all latent_summary.checkpoint=sae_mll23_dinobloom)
hehr+=(sae_run=runs/mll23_dinobloom/default/fold_0/train_sae latent_summary.split=test)
for task in metadata embed summarize_latents; do
    python -m src.run "${hehr[@]}" "task=$task"
done
# The same with each patient's counts divided by the patient's images.
python -m src.run "${hehr[@]}" task=summarize_latents latent_summary.recipe=default 'latent_summary.export=[]'
