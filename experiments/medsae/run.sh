#!/usr/bin/env bash
# From the repository root. $1: folder that holds CheXpert-v1.0-small/. $2: MedCLIP's ResNet-50. $3: MIMIC-CXR-JPG.
set -euo pipefail
chexpert=(exp=chexpert_medclip "dataset.dir=$1" "backbone.checkpoint=$2")
for task in metadata embed train_sae evaluate_sae encode select_neurons summarize_latents train_probe; do
    python -m src.run "${chexpert[@]}" "task=$task"
done
python -m src.run "${chexpert[@]}" dataset.target=edema task=select_neurons
# The same, trained on MIMIC-CXR.
python -m src.run exp=mimic_medclip "dataset.dir=$3" "backbone.checkpoint=$2" task=pipeline
