#!/usr/bin/env bash
# From the repository root. $1: histolearn_uni_crc9.npz; $2: a folder for its arrays.
set -euo pipefail
python -m experiments.probes.crc9 "$1" "$2"
tiles=(exp=tensors name=crc9_uni dataset.name=crc9_uni)
for part in train val test; do tiles+=("dataset.tensors.$part=$2/$part.npy" "dataset.tensor_labels.$part=$2/${part}_labels.npy"); done
tiles+=(sae=topk sae.k=32 sae.expansion=1 train.epochs=300 train.batch_size=90)
for task in metadata train_sae train_probe; do python -m src.run "${tiles[@]}" "task=$task"; done
