#!/usr/bin/env bash
# From the repository root. $1: folder that holds HAM10000_metadata.csv and the images anywhere below it. $2: Mammo-CLIP's
# EfficientNet-B5, where the same is to be done with it.
set -euo pipefail
study=(exp=ham10000_sae "dataset.dir=$1" "dataset.listing.csv=$1/HAM10000_metadata.csv")
for task in metadata embed splits train_sae encode; do
    python -m src.run "${study[@]}" "task=$task"
done
python -m src.run "${study[@]}" task=summarize_latents 'latent_summary.export=[concepts]'
python -m src.run "${study[@]}" task=visualize 'visualize.thresholds=[0.3,0.5]' visualize.n_images=70
python -m src.run "${study[@]}" task=visualize 'visualize.class_filter=[mel]' visualize.n_images=20
python -m src.run "${study[@]}" task=train_probe
python -m src.run "${study[@]}" task=steer steer=mammo_sae
if [ $# -gt 1 ]; then
    python -m src.run exp=ham10000_mammoclip "dataset.dir=$1" "backbone.checkpoint=$2" task=pipeline
fi
