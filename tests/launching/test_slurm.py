"""What SLURM is asked for, and how its refusals are told; sbatch is a script of the test's."""

import logging
import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from src import config
from src.launching import slurm
from src.launching.plan import Command, Plan, Stage
from src.runs.jobs import read_jobs

pytest.importorskip("submitit")
logging.getLogger("submitit").setLevel(logging.ERROR)


def cluster_of(*overrides):
    return config.to_container(config.compose(["cluster=slurm", *overrides]).cluster)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A machine with SLURM's commands, which note what they are given; `sbatch` may be replaced."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (tmp_path / "bin").mkdir()

    def install(name, script):
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    counted = f'cat "${{@: -1}}" >> {tmp_path}/scripts; echo x >> {tmp_path}/n; '
    install("sbatch", counted + f'echo "Submitted batch job $((10 + $(wc -l < {tmp_path}/n)))"')
    install("srun", "exit 1")
    install("scancel", f'echo "$@" >> {tmp_path}/cancelled')
    return install


def plan_of(runs: Path, n_folds=2):
    folds = tuple(
        Command((f"fold={fold}", "task=pipeline"), (runs / f"fold_{fold}" / "pipeline",)) for fold in range(n_folds)
    )
    last = (runs / "summarize_cv", runs / "report")
    return Plan(
        (
            Stage("prepare", (Command(("task=steps",), (runs / "splits",)),)),
            Stage("pipeline", folds, takes_gpus=True),
            Stage("gather", (Command(("task=steps",), last),), needs_success=False),
        ),
        (),
        {},
        waits_for=("7",),
    )


def test_every_stage_waits_for_the_one_before_and_jobs_are_known_at_once(tmp_path, site):
    rows = slurm.submit(
        plan_of(tmp_path / "runs"), cluster_of(), tmp_path / "runs" / ".sweeps" / "a", tmp_path / "runs"
    )
    assert [(row.job_id, row.stage, row.run_dir.name) for row in rows] == [
        ("11", "prepare", "splits"),
        ("12_0", "pipeline", "pipeline"),
        ("12_1", "pipeline", "pipeline"),
        ("13", "gather", "summarize_cv"),
        ("13", "gather", "report"),
    ]
    assert read_jobs(tmp_path / "runs") == rows
    assert rows[1].command == "python -m src.run fold=0 task=pipeline"
    script = (tmp_path / "scripts").read_text()
    asked = [line for line in script.splitlines() if "--dependency" in line or "--gpus" in line or "--array" in line]
    assert asked == [
        "#SBATCH --dependency=afterok:7",
        "#SBATCH --array=0-1%2",
        "#SBATCH --dependency=afterok:11",
        "#SBATCH --gpus-per-node=1",
        "#SBATCH --dependency=afterok:11,afterany:12",
    ]
    assert script.count("#SBATCH --kill-on-invalid-dep=yes") == 3
    assert script.count("#SBATCH --requeue") == 3
    assert script.count("export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK") == 3


def test_keys_of_the_group_reach_sbatch(tmp_path, site):
    typed = ["partition=gpu", "account=lab", "qos=long", "constraint=a100", "cpus=4", "mem_gb=1.5", "minutes=90"]
    typed += ["signal_seconds=60", "n_jobs=1", "setup=[module load cuda]", "container=/img/loupe.sif"]
    typed += ["+sbatch.mail-type=END", "gpus=2"]
    cluster = cluster_of(*(f"+cluster.{key[1:]}" if key[0] == "+" else f"cluster.{key}" for key in typed))
    slurm.submit(plan_of(tmp_path / "runs"), cluster, tmp_path / "runs" / ".sweeps" / "a", tmp_path / "runs")
    script = (tmp_path / "scripts").read_text()
    for option in ("partition=gpu", "account=lab", "qos=long", "constraint=a100", "cpus-per-task=4", "mem=1536MB"):
        assert script.count(f"#SBATCH --{option}\n") == 3, option
    for option in ("time=90", "signal=USR2@60", "mail-type=END"):
        assert script.count(f"#SBATCH --{option}\n") == 3, option
    assert "#SBATCH --gpus-per-node=2" in script
    assert "--array=0-1%1" in script
    assert script.count("\nmodule load cuda\n") == 3
    assert script.count("\nexport OMP_NUM_THREADS=4\n") == 3
    assert script.count(" apptainer exec --nv /img/loupe.sif python -u -m submitit.core._submit ") == 3


@pytest.mark.parametrize(
    ("typed", "is_right"),
    [
        ((), True),
        (("cluster.gpus=4", "trainer=ddp"), True),
        (("cluster.gpus=2", "trainer.devices=2"), True),
        (("cluster.gpus=0", "trainer=cpu", "trainer.devices=2"), True),
        (("cluster.gpus=4",), False),
        (("trainer.devices=2",), False),
        (("trainer.devices=[0,1]",), False),
    ],
)
def test_a_job_has_a_gpu_for_each_device_of_its_training(typed, is_right):
    cfg = config.compose(["exp=quickstart", "cluster=slurm", *typed])
    with nullcontext() if is_right else pytest.raises(ValueError, match=r"trainer=ddp.*or cluster\.gpus="):
        slurm.require_gpus_for_devices(cfg.cluster, cfg.trainer)


def test_without_slurm_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"^Expected SLURM's sbatch .*, got none on the path\. .*cluster=workers\.$"):
        slurm.submit(plan_of(tmp_path / "runs"), cluster_of(), tmp_path / "folder", tmp_path / "runs")
    assert not (tmp_path / "folder").exists()


def test_a_refusal_of_a_later_stage_takes_the_earlier_ones_back(tmp_path, site):
    refusal = "sbatch: error: invalid partition specified: nowhere"
    site(
        "sbatch", f'if grep -q array= "${{@: -1}}"; then echo "{refusal}" >&2; exit 1; fi; echo "Submitted batch job 5"'
    )
    folder = tmp_path / "runs" / ".sweeps" / "a"
    with pytest.raises(ValueError, match=r"the stage pipeline, got: .*invalid partition.*cluster\.partition") as caught:
        slurm.submit(plan_of(tmp_path / "runs"), cluster_of("cluster.partition=nowhere"), folder, tmp_path / "runs")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "cancelled").read_text() == "5\n"
    assert read_jobs(tmp_path / "runs") == []


@pytest.mark.skipif(not Path("/dev/full").exists() or os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk_for_the_files_of_jobs_is_one_sentence(tmp_path, site):
    import subprocess

    folder = tmp_path / "runs" / ".sweeps" / "a"
    folder.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k,nr_inodes=4", "none", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"mounting is refused: {mounted.stderr}")
    try:
        with pytest.raises(
            ValueError, match=rf"^Expected to write the files of .* jobs into {folder}/slurm, got: No space"
        ):
            slurm.submit(plan_of(tmp_path / "runs"), cluster_of(), folder, tmp_path / "runs")
        assert not (folder / "jobs.csv").exists()
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
