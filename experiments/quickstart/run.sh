#!/usr/bin/env bash
# From the repository root; the same as `make demo`.
set -euo pipefail
python -m src.run exp=quickstart task=pipeline
python -m experiments.quickstart.figures runs   # the tables of this folder and the README's figures
