#!/usr/bin/env bash
# From the repository root. $1: a folder that holds musk1/ and crc_colon_resnet50/ in CLAM's layout.
set -euo pipefail
python -m src.run -m exp=features dataset.dir="$1/musk1" dataset.positive_class=positive dataset.standardize=true 'fold=range(5)' task=pipeline
python -m src.run -m exp=features dataset.dir="$1/crc_colon_resnet50" dataset.positive_class=cancer 'fold=range(5)' task=pipeline
