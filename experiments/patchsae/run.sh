#!/usr/bin/env bash
# From the repository root. $1: a folder of images, a folder a class (ImageNet's train/ and val/, say). CLIP's weights come from
# open_clip, or from backbone.pretrained=<file>. What follows $1 goes to every command: trainer=cpu, sae.expansion=8, ...
set -euo pipefail
images=$1
shift
common=(
  exp=images name=patchsae dataset.dir="$images"
  backbone=clip_vitb16 backbone.layer=-2 backbone.tokens=all   # the residual stream behind the last block but one, all 197 tokens
  sae=patchsae train=patchsae train.batch_unit=images train.batch_size=128
  latent_summary.source=computed latent_summary.recipe=patchsae "latent_summary.export=[feature_data]"
  steer=patchsae steer.head=zero_shot
)
python -m src.run "${common[@]}" task=metadata "$@"            # the table of images
python -m src.run "${common[@]}" task=splits "$@"              # where the folder has no parts of its own
python -m src.run "${common[@]}" task=embed "$@"               # tokens, computed once for all that follows
python -m src.run "${common[@]}" task=train_sae "$@"           # 1
python -m src.run "${common[@]}" task=summarize_latents "$@"   # 2 and 3
python -m src.run "${common[@]}" task=steer "$@"               # 4
