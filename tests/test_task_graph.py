"""A task is one function and one YAML; what follows from its declaration is derived."""

import subprocess
import sys

import pytest

from src import config
from src.task_graph import TaskGraph, TaskSpec

SPECS = [
    TaskSpec("train", "m.run", "fold", groups=("sae",), order=40, run_key="sae_run"),
    TaskSpec("encode", "m.run", "fold", ("train",), ("encode",), order=50),
    TaskSpec("rank", "m.run", "fold", ("encode",), ("selection",), order=30),
    TaskSpec("gather", "m.run", "name", ("rank",), ("summary",), order=90),
    TaskSpec("extra", "m.run", "fold", ("train",), order=45, is_step=False),
    TaskSpec("status", "m.run", "none"),
    TaskSpec("all", "m.run", "fold", "steps", is_step=False),
    TaskSpec("book", "m.run", "name", "pages"),
]


def names(specs):
    return [spec.name for spec in specs]


def test_steps_follow_what_they_read_and_then_their_pages():
    graph = TaskGraph(SPECS)
    assert names(graph.steps) == ["train", "encode", "rank", "gather", "book"]
    assert names(graph.pages) == ["rank", "train", "extra", "encode", "gather"]


def test_groups_come_through_the_upstreams_but_not_past_an_explicit_run():
    graph = TaskGraph(SPECS)
    assert graph.groups("rank") == {"sae", "encode", "selection"}
    assert graph.groups("rank", given=["train"]) == {"encode", "selection"}
    assert graph.groups("train", given=["train"]) == {"sae"}
    assert graph.groups("all") == {"sae", "encode", "selection", "summary"}
    assert graph.given({"sae_run": "runs/x"}) == {"train": "runs/x"}


def test_pipeline_of_a_fold_does_not_depend_on_what_gathers_all_folds():
    assert TaskGraph(SPECS).upstream("all") == ("train", "encode", "rank")


def test_wrong_declarations_are_named():
    with pytest.raises(ValueError, match=r"upstream tasks of a among \['a'\], got 'b'"):
        TaskGraph([TaskSpec("a", "m.run", "fold", ("b",))])
    with pytest.raises(ValueError, match="do not wait for each other, got a -> b -> a"):
        TaskGraph([TaskSpec("a", "m.run", "fold", ("b",)), TaskSpec("b", "m.run", "fold", ("a",))])
    with pytest.raises(ValueError, match=r"task.scope of a .* got 'slide'"):
        TaskSpec.from_node({"_target_": "m.run", "name": "a", "scope": "slide"}, "a.yaml")
    with pytest.raises(ValueError, match=r"declaration of a task in a.yaml, .*'upstreams'"):
        TaskSpec.from_node({"_target_": "m.run", "name": "a", "scope": "fold", "upstreams": []}, "a.yaml")
    with pytest.raises(ValueError, match="Expected a task among"):
        TaskGraph(SPECS)["other"]


TOY_YAML = """# @package _global_
# Counts the latents.
task:
  _target_: toy_tasks.count
  name: count_latents
  scope: fold
  groups: [dataset]
  upstream: [encode]
  order: 55
"""
TOY_CODE = '''"""A task of a user's own."""
from src.report.page import Page


def count(cfg, rundir):
    encoded = rundir.upstream("encode")
    n = encoded.read_results()["n_items"]
    rundir.write_page(Page("Latents, counted", [f"Counted {n:g} slides."]))
    return {"n_counted": n}
'''


def test_a_task_of_a_users_own_is_shown_by_help(tmp_path):
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "count_latents.yaml").write_text(TOY_YAML)
    command = [sys.executable, "-m", "src.run", "--config-dir", str(tmp_path), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "count_latents" in shown.stdout


@pytest.mark.slow
def test_a_task_of_a_users_own_runs_in_the_pipeline_and_is_in_the_report(tmp_path, monkeypatch):
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "count_latents.yaml").write_text(TOY_YAML)
    (tmp_path / "toy_tasks.py").write_text(TOY_CODE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = [sys.executable, "-m", "src.run", "--config-dir", str(tmp_path / "conf"), "exp=quickstart_small"]
    command += [f"paths.data={tmp_path / 'data'}", f"paths.runs={tmp_path / 'runs'}", "trainer=cpu", "task=pipeline"]
    command += ["train.epochs=1", "mil.methods=[max_latents]", "localization.n_overlays=1"]
    subprocess.run(command, check=True)
    (run,) = tmp_path.glob("runs/*/*/fold_0/count_latents")
    assert (run / "results.json").is_file()
    (report,) = tmp_path.glob("runs/*/*/report/report.html")
    assert "Latents, counted" in report.read_text()


def test_declarations_of_this_program_are_whole():
    graph = config.tasks()
    assert names(graph.steps)[:2] == ["tile", "metadata"]
    assert names(graph.steps)[-2:] == ["summarize_cv", "report"]
    assert [spec.name for spec in graph.pages] == sorted(
        (spec.name for spec in graph.pages), key=lambda name: graph[name].order
    )
