#!/usr/bin/env bash
# From the repository root. $1: folder of PNG mammograms. $2: csv with image_id, path, study_id, split, label.
# $3: csv of boxes with image_id, label, xmin, ymin, xmax, ymax.
set -euo pipefail
study=(exp=mammo_sae "dataset.dir=$1" "dataset.listing.csv=$2" dataset.listing.columns.case=study_id
       dataset.listing.columns.split=split "dataset.listing.boxes={csv:$3}")
for task in metadata embed train_sae encode; do
    python -m src.run "${study[@]}" "task=$task"
done
python -m src.run "${study[@]}" task=summarize_latents 'latent_summary.export=[concepts]'
python -m src.run "${study[@]}" task=visualize
python -m src.run "${study[@]}" task=train_probe
python -m src.run "${study[@]}" task=steer steer=mammo_sae
