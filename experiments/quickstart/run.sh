#!/usr/bin/env bash
# From the repository root; the same as `make demo`.
set -euo pipefail
python -m src.run exp=quickstart task=pipeline
