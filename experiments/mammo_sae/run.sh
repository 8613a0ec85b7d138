#!/usr/bin/env bash
# From the repository root. $1: VinDr-Mammo as Mammo-CLIP converts it: images_png/ and vindr_detection_v1_folds.csv.
# $2: Mammo-CLIP's EfficientNet-B5. For PNG and csv files of your own: exp=mammo_sae dataset.listing.csv=<csv>.
set -euo pipefail
study=(exp=vindr_mammoclip "dataset.dir=$1" "backbone.checkpoint=$2")
for task in metadata embed train_sae encode; do
    python -m src.run "${study[@]}" "task=$task"
done
python -m src.run "${study[@]}" task=summarize_latents 'latent_summary.export=[concepts]'
python -m src.run "${study[@]}" task=visualize
python -m src.run "${study[@]}" task=train_probe
python -m src.run "${study[@]}" task=steer steer=mammo_sae
