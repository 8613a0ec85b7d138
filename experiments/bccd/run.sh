#!/usr/bin/env bash
# From the repository root. $1: folder with bccd_images.csv, bccd_boxes.csv and the images.
# $2: MobileNetV2 of width 0.35 in timm's key names (.safetensors).
set -euo pipefail
python -m src.run exp=bccd_mobilenet "dataset.dir=$1" "backbone.checkpoint=$2" task=pipeline
