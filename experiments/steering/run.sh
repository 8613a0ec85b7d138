#!/usr/bin/env bash
# From the repository root. $1: a folder with cifar10*.npz (imgs, labels, classes). $2: MobileNetV2 0.35 weights in timm's key names.
# Data and runs go to LOUPE_DATA_ROOT and LOUPE_RUNS_ROOT (data/ and runs/ when not set).
set -euo pipefail
images=$1
weights=$2
data=${LOUPE_DATA_ROOT:-data}/cifar10
cifar=(exp=cifar_mobilenet dataset.dir="$images" backbone.checkpoint="$weights" trainer=cpu sae.expansion=4)
python -m src.run "${cifar[@]}" task=metadata
python -m experiments.steering.split "$data/dataset.csv" "$data/splits"   # 60 / 10 / 30 %
for task in embed train_sae encode summarize_latents train_probe; do python -m src.run "${cifar[@]}" task=$task; done
for replace in mean zero; do
  python -m src.run "${cifar[@]}" task=steer steer.replace=$replace "steer.sizes=[1,10,50,100,200,500,1000,all]"
done

slides=(exp=quickstart trainer=cpu "mil.methods=[attention_latents]")
for task in tile embed splits train_sae encode summarize_latents train_mil; do python -m src.run "${slides[@]}" task=$task; done
python -m src.run "${slides[@]}" task=steer steer.head=mil steer.n_controls=20
