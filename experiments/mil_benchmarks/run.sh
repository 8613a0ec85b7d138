#!/usr/bin/env bash
# From the repository root. $1: a folder that holds musk1/, elephant/ and crc_colon_resnet50/ in CLAM's layout, each with
# splits/rep<r>_fold<k>.csv. Ten folds, five times. Everything is skipped that is there already.
set -euo pipefail
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1  # bags are small: a run on one core, two runs at a time

# Bags are tiny: eight a step.
small=(mil.batch_size=8 mil.lr=5e-4 mil.weight_decay=5e-3 mil.max_epochs=60 mil.min_epochs=20 mil.patience=20 mil.stop_below=0)
# Every method of the group mil on activations, untuned but for the number of epochs.
untuned=(dataset.positive_class=cancer mil.max_epochs=20 mil.min_epochs=10 mil.patience=10)

folds() {  # <data set> <repeats> <overrides...>: train_mil on each given fold of each repeat
  local set="$1" repeats="$2"; shift 2
  python -m src.run -m exp=features dataset.dir="$data/$set" dataset.splits_dir="$data/$set/splits" trainer=cpu \
    'fold=range(10)' "repeat=$repeats" task=train_mil "$@"
}

data="$1"
attention() {
  folds "$1" 'range(5)' dataset.positive_class=positive dataset.standardize=true \
    'mil.methods=[attention_activations]' "${small[@]}"
}
attention musk1 & others=$!
attention elephant
wait "$others"

colon=crc_colon_resnet50
each_method() {
  for mil in "$@"; do folds "$colon" 'range(5)' "mil=$mil" "${untuned[@]}"; done
}
# Mean and attention with four settings each: the setting is chosen on the validation parts of repeat 0.
with_settings() {
  local batch=(mil.batch_size=8 mil.lr=5e-4) chosen
  for mil in meanmil abmil; do
    for standardize in false true; do
      for weight_decay in 1e-5 1e-2; do
        folds "$colon" 0 "mil=$mil" "${untuned[@]}" "${batch[@]}" "dataset.standardize=$standardize" "mil.weight_decay=$weight_decay"
      done
    done
    read -ra chosen < <(python -m experiments.mil_benchmarks.table choose "mil=$mil")
    folds "$colon" 'range(5)' "mil=$mil" "${untuned[@]}" "${chosen[@]}"
  done
}
each_method maxmil meanmil abmil gated_abmil clam_sb clam_mb dsmil & others=$!
with_settings
each_method transmil
wait "$others"

python -m experiments.mil_benchmarks.table show "$data"
