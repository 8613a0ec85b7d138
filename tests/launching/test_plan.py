"""What a multirun has left to do: shared work once and before, summaries after, nothing twice."""

import shutil
from types import SimpleNamespace

import pytest

from src import config
from src.launching.busy import Busy
from src.launching.plan import Job, make_plan
from src.runs.execution import execute
from tests.synthetic import make_feature_folder

CLUSTER = {"one_pass": True, "embed_parts": 1}


@pytest.fixture
def typed(tmp_path):
    config.register_resolvers()
    make_feature_folder(tmp_path / "features", n_slides=20, n_patches=20)
    places = [f"dataset.dir={tmp_path / 'features'}", f"paths.data={tmp_path / 'data'}", f"paths.runs={tmp_path}/runs"]
    few = ["train.batch_size=64", "train.epochs=1", "train.n_validations=1", "splits.n_folds=2", "trainer=cpu"]
    return ["exp=features", "dataset.positive_class=tumor", "name=small", *places, *few]


def job(typed, *overrides):
    overrides = (*typed, *overrides)
    return Job(overrides, config.resolve(config.compose(overrides)))


def busy(**who):
    """Nobody is at work, but the runs of some tasks are queued in the SLURM jobs given."""
    return SimpleNamespace(of=lambda path: Busy("queued", who[path.name]) if path.name in who else None)


def summary_of(plan):
    return [(stage.name, len(stage.commands), stage.takes_gpus, stage.needs_success) for stage in plan.stages]


def test_folds_share_what_comes_before_and_after_them(typed):
    plan = make_plan([job(typed, f"fold={fold}", "task=pipeline") for fold in range(2)], busy(), CLUSTER)
    assert summary_of(plan) == [
        ("prepare", 1, False, True),
        ("pipeline", 2, True, True),
        ("gather", 1, False, False),
    ]
    prepare, pipeline, gather = (stage.commands for stage in plan.stages)
    assert prepare[0].overrides[-2:] == ("task=steps", "cluster.steps=[tile,metadata,splits]")
    assert [path.name for path in prepare[0].run_dirs] == ["splits_made"] or prepare[0].run_dirs[
        0
    ].parent.name == "splits"
    assert [command.run_dirs[0].parts[-2:] for command in pipeline] == [("fold_0", "pipeline"), ("fold_1", "pipeline")]
    assert "splits" not in pipeline[0].overrides[-1]
    assert "train_sae,encode" in pipeline[0].overrides[-1].replace("evaluate_sae,", "")
    assert gather[0].overrides[-1] == "cluster.steps=[summarize_cv,report]"


def test_work_that_another_launch_has_queued_is_waited_for(typed):
    jobs = [job(typed, f"fold={fold}", "task=pipeline") for fold in range(2)]
    places = {path.name for command in make_plan(jobs, busy(), CLUSTER).stages[0].commands for path in command.run_dirs}
    plan = make_plan(jobs, busy(**dict.fromkeys(places, "12")), CLUSTER)
    assert [stage.name for stage in plan.stages] == ["pipeline", "gather"]
    assert plan.waits_for == ("12",)
    everything = make_plan(jobs, busy(pipeline="13_0"), CLUSTER)
    assert everything.stages == ()
    assert len(everything.busy) == 2


def test_a_large_image_set_is_embedded_in_parts_and_only_those_take_gpus(typed, tmp_path):
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(6):
            Image.new("RGB", (32, 32)).save(tmp_path / "pictures" / name / f"{name}{index}.png")
    places = [f"dataset.dir={tmp_path}/pictures", f"paths.data={tmp_path}/data", f"paths.runs={tmp_path}/runs"]
    images = ["exp=images", "backbone=random_resnet10t", "dataset.positive_class=b", *places]
    plan = make_plan([job(images, "task=pipeline")], busy(), CLUSTER | {"embed_parts": 3})
    assert summary_of(plan) == [
        ("prepare", 1, False, True),
        ("embed", 3, True, True),
        ("merge the parts", 1, False, True),
        ("pipeline", 1, True, True),
        ("gather", 1, False, False),
    ]
    parts = plan.stages[1].commands
    assert [command.overrides[-1] for command in parts] == [f"embed.part={part}/3" for part in (1, 2, 3)]
    assert [command.run_dirs[0].name for command in parts] == [f"part_{part}_of_3" for part in (1, 2, 3)]
    assert not any("embed.part" in override for override in plan.stages[2].commands[0].overrides)


@pytest.mark.slow
def test_a_grid_of_saes_becomes_one_sweep_for_each_fold(typed):
    execute(config.compose([*typed, "task=splits"]), [*typed, "task=splits"])
    grid = [
        job(typed, f"sae={sae}", f"sae.k={k}", f"fold={fold}", "task=train_sae")
        for sae in ("batch_topk", "topk")
        for k in (4, 8)
        for fold in range(2)
    ]
    plan = make_plan(grid, busy(), CLUSTER)
    assert summary_of(plan) == [("train_sae", 2, True, True)]
    assert len(plan.remarks) == 2
    for fold, command in enumerate(plan.stages[0].commands):
        assert f"fold={fold}" in command.overrides
        assert command.overrides[-2:] == ("task=train_sae_sweep", "sweep.grid=['sae=batch_topk,topk','sae.k=4,8']")
        sweep, *members = command.run_dirs
        assert sweep.name == "train_sae_sweep"
        assert set(members) == {one.path for one in grid if one.cfg.fold == fold}
        assert config.expand_grid(config.compose(command.overrides).sweep.grid)[1] == ["sae=batch_topk", "sae.k=8"]
    assert len(make_plan(grid, busy(), CLUSTER | {"one_pass": False}).stages[0].commands) == 8
    # Another length is another stream; and what is no full grid cannot be written as one.
    lengths = [job(typed, f"train.epochs={n}", "task=train_sae") for n in (1, 2)]
    assert len(make_plan(lengths, busy(), CLUSTER).stages[0].commands) == 2
    assert len(make_plan([grid[0], grid[6]], busy(), CLUSTER).stages[0].commands) == 2


@pytest.mark.slow
def test_finished_runs_are_left_out_and_stale_ones_refused(typed, tmp_path):
    for task in ("splits", "train_sae"):
        execute(config.compose([*typed, f"task={task}"]), [*typed, f"task={task}"])
    jobs = [job(typed, f"fold={fold}", "task=train_sae") for fold in range(2)]
    plan = make_plan(jobs, busy(), CLUSTER)
    assert plan.finished == (jobs[0].path,)
    assert [command.run_dirs for command in plan.stages[0].commands] == [(jobs[1].path,)]
    manifest = jobs[0].path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": 2', '"schema_version": 1'))
    with pytest.raises(ValueError, match=r"out of date: it was made by another version.*overwrite=true"):
        make_plan(jobs, busy(), CLUSTER)
    shutil.rmtree(tmp_path / "features")
    with pytest.raises(ValueError, match=r"needs dataset\.features_dir"):
        make_plan(jobs[1:], busy(), CLUSTER)


def test_tasks_of_one_launch_run_in_the_order_of_the_pipeline(typed):
    execute(config.compose([*typed, "task=splits"]), [*typed, "task=splits"])
    tasks = [job(typed, f"task={task}") for task in ("encode", "train_sae")]
    assert [stage.name for stage in make_plan(tasks, busy(), CLUSTER).stages] == ["train_sae", "encode"]
    plan = make_plan(tasks, busy(train_sae="12_0"), CLUSTER)
    assert [(stage.name, stage.waits_for) for stage in plan.stages] == [("encode", ("12_0",))]
    again = make_plan([tasks[1], tasks[1]], busy(), CLUSTER)
    assert [len(stage.commands) for stage in again.stages] == [1]
