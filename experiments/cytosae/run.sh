#!/usr/bin/env bash
# From the repository root. $1: folder of single-cell images. $2: csv with image_id, label and patient. $3: DinoBloom-B.pth.
# $4: the same of another data set (folder), $5 (csv), which only receives the SAE.
set -euo pipefail
study=(exp=cytosae "dataset.dir=$1" "dataset.listing.csv=$2" dataset.listing.columns.case=patient "backbone.checkpoint=$3")
# Latents of 49,152 neurons on all tokens are many: the SAE computes them in the one pass that reads them.
for task in metadata embed splits train_sae; do
    python -m src.run "${study[@]}" "task=$task"
done
python -m src.run "${study[@]}" task=summarize_latents latent_summary.source=computed

# Another data set, all of its images: nothing is fitted on it.
sae=runs/cytosae/default/fold_0/train_sae
cohort=(exp=cytosae name=cytosae_cohort "dataset.dir=$4" "dataset.listing.csv=$5" dataset.listing.columns.case=patient)
cohort+=("backbone.checkpoint=$3" fold=all "sae_run=$sae" latent_summary.checkpoint=sae_cytosae)
for task in metadata embed; do
    python -m src.run "${cohort[@]}" "task=$task"
done
python -m src.run "${cohort[@]}" task=summarize_latents latent_summary.split=test latent_summary.source=computed
# The same with each patient's counts divided by the patient's images.
python -m src.run "${cohort[@]}" task=summarize_latents latent_summary.split=test latent_summary.source=computed \
    latent_summary.recipe=default 'latent_summary.export=[]'
