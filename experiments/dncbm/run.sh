#!/usr/bin/env bash
# From the repository root. $1: folder with CC3M's training/*.tar and validation/*.tar. $2: Places365 with train/ and val/.
set -euo pipefail
for task in metadata embed train_sae evaluate_sae; do
    python -m src.run exp=cc3m_clip_rn50 "dataset.dir=$1" "task=$task"
done
probes=(exp=cc3m_clip_rn50 name=places365_clip_rn50 dataset=places365 "dataset.dir=$2"
        sae_run=runs/cc3m_clip_rn50/default/fold_0/train_sae)
for task in metadata embed; do
    python -m src.run "${probes[@]}" "task=$task"
done
python -m src.run "${probes[@]}" task=train_probe probe.solver=adam probe.lr=1e-2 'probe.l2=[0.0]' probe.l1=1e-4 \
    probe.max_epochs=200 probe.neuron_probes=false
