#!/usr/bin/env bash
# Folds as a plain SLURM array, for sites without submitit; from the repository's root, on a machine with sbatch:
#   bash experiments/slurm/run.sh 5 exp=camelyon16_conch
# Partition and account come from SBATCH_PARTITION and SBATCH_ACCOUNT, what a job asks for from job.sbatch, and GPUs of embedding and
# of folds from GPUS (1; 0 for none).
set -euo pipefail
N_FOLDS=$1
shift
mkdir -p runs/slurm
JOB=experiments/slurm/job.sbatch
SHARED='cluster.steps=[tile,metadata,splits]'
GATHER='cluster.steps=[summarize_cv,report]'
GPU=()
if [ "${GPUS:-1}" != 0 ]; then GPU=("--gpus=${GPUS:-1}"); fi
FOLDS=$(python - <<'PYTHON'
from src import config
print(",".join(spec.name for spec in config.tasks().steps if spec.scope == "fold"))
PYTHON
)

prepare=$(sbatch --parsable "$JOB" "$@" task=steps "$SHARED")
embed=$(sbatch --parsable "${GPU[@]}" --dependency="afterok:$prepare" "$JOB" "$@" task=steps 'cluster.steps=[embed]')
folds=$(sbatch --parsable "${GPU[@]}" --dependency="afterok:$embed" --array="0-$((N_FOLDS - 1))" "$JOB" "$@" \
  task=pipeline "cluster.steps=[$FOLDS]")
gather=$(sbatch --parsable --dependency="afterany:$folds" "$JOB" "$@" task=steps "$GATHER")
echo "Submitted $prepare (shared work), $embed (embedding), $folds (folds 0 to $((N_FOLDS - 1))), $gather (summary)."
echo "Logs: runs/slurm/<job>.log. How far they are: python -m src.run task=status"
