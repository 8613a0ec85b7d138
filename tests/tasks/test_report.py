import json

import pandas as pd
import pytest
from omegaconf import OmegaConf
from PIL import Image

from src import config
from src.report.page import Page, PageFigure
from src.runs import provenance
from src.runs.rundir import RunDir
from src.task_graph import TaskGraph, TaskSpec
from src.tasks import report

STEPS = ("train_sae", "select_neurons")
PAGES = {"tile": 10, "train_sae": 40, "encode": 50, "select_neurons": 60, "train_mil": 70, "localize": 80}
FOLD_TASKS = ("train_sae", "encode", "select_neurons", "train_mil", "localize")


@pytest.fixture
def cfg(monkeypatch):
    specs = [
        TaskSpec(
            task,
            f"src.tasks.{task}.run",
            "fold" if task in FOLD_TASKS else "dataset",
            order=order,
            is_step=task in STEPS,
        )
        for task, order in PAGES.items()
    ]
    monkeypatch.setattr(config, "tasks", lambda: TaskGraph(specs))
    return OmegaConf.create(
        {
            "name": "demo",
            "fold": 0,
            "dataset": {"name": "slides", "positive_class": "tumor"},
            "backbone": {"name": "net", "pretrained": True},
            "sae": {"_target_": "src.models.saes.batch_topk.BatchTopK"},
            "report": {"max_image_width": 800},
        }
    )


def _rundir(root, task, fold=0):
    def locate(name):
        return root / f"fold_{fold}" / name if name in FOLD_TASKS else root / name

    return RunDir(locate(task), locate, "python -m src.run")


def _finish(root, task, fold=0, page=None, dirty=False):
    rundir = _rundir(root, task, fold)
    manifest = provenance.describe_run(0, fold) | {"status": "completed", "ended": provenance.now()}
    manifest["git"] = {"commit": "abc", "dirty": dirty}
    rundir.write_json(rundir.manifest_path, manifest)
    if page is not None:
        rundir.write_page(page)
    return rundir


def test_pages_of_all_folds_are_gathered(tmp_path, cfg, caplog):
    for fold in (0, 1):
        for task in ("train_sae", "select_neurons"):
            rundir = _finish(tmp_path, task, fold, Page(task, paragraphs=[f"{task} of fold {fold}"]))
            pd.DataFrame({"neuron_id": [7 + fold, 2], "auroc": [0.9, 0.5], "q_value": [0.01, 1.0]}).to_csv(
                rundir.table("neurons"), index=False
            )
    _finish(tmp_path, "tile", page=Page("Slides"))
    rundir = _rundir(tmp_path, "report")
    with caplog.at_level("INFO"):
        results = report.run(cfg, rundir)
    assert results == {"n_pages": 5, "n_missing": 0, "n_warnings": 0}
    text = rundir.report_path.read_text()
    for fold in (0, 1):
        assert f"train_sae of fold {fold}" in text
    assert "neuron 7, 8 (folds 0, 1)" in text
    assert "What is missing" not in text
    assert str(rundir.report_path) in caplog.messages[-1]


def test_what_is_missing_is_named_with_what_to_do(tmp_path, cfg):
    _finish(tmp_path, "train_sae", 1, page=None)
    rundir = _rundir(tmp_path, "report")
    assert report.run(cfg, rundir)["n_missing"] == 2
    text = rundir.report_path.read_text()
    assert "train_sae, fold 1" in text
    assert "left no page" in text
    assert "select_neurons, fold 1" in text
    assert "the same command with task=select_neurons fold=1" in text


def test_unfinished_runs_are_not_shown(tmp_path, cfg):
    rundir = _finish(tmp_path, "train_sae", page=Page("Half a run"))
    rundir.write_json(rundir.manifest_path, rundir.read_manifest() | {"status": "failed"})
    assert report.run(cfg, _rundir(tmp_path, "report"))["n_pages"] == 0


def test_reader_is_warned_of_random_weights_and_uncommitted_code(tmp_path, cfg):
    cfg.backbone.pretrained = False
    _finish(tmp_path, "train_sae", page=Page("SAE"), dirty=True)
    rundir = _rundir(tmp_path, "report")
    assert report.run(cfg, rundir)["n_warnings"] == 2
    text = rundir.report_path.read_text()
    assert "The backbone net has random weights" in text
    assert "changes to the code that are in no commit" in text


def test_first_overlay_of_the_localisation_is_the_headline_figure(tmp_path, cfg):
    rundir = _rundir(tmp_path, "localize")
    for name in ("patch_curves", "overlay_s1", "overlay_s2"):
        Image.new("RGB", (8, 8)).save(rundir.plot(name))
    figures = [PageFigure(rundir.plot(name), f"about {name}") for name in ("patch_curves", "overlay_s1", "overlay_s2")]
    _finish(tmp_path, "localize", page=Page("Where", figures=figures))
    report.run(cfg, _rundir(tmp_path, "report"))
    text = _rundir(tmp_path, "report").report_path.read_text()
    headline = text[text.index('id="headline"') : text.index('id="task-localize"')]
    assert "about overlay_s1" in headline
    assert "about overlay_s2" not in headline


def test_report_is_out_of_date_when_a_run_is_made_again(tmp_path, cfg):
    sae = _finish(tmp_path, "train_sae", page=Page("SAE"))
    assert report.inputs(cfg, _rundir(tmp_path, "report")) == [sae.manifest_path, sae.page_path]
    assert json.loads(sae.page_path.read_text())["title"] == "SAE"


def test_reader_is_warned_of_saes_that_fail_on_held_out_items(tmp_path, cfg):
    cfg.sae.k = 8
    for fold in (0, 1):
        rundir = _finish(tmp_path, "encode", fold, page=Page("Latents"))
        rundir.write_json(rundir.results_path, {"test/explained_variance": -0.5 - fold, "test/l0": 30.0 * fold})
    assert report.run(cfg, _rundir(tmp_path, "report"))["n_warnings"] == 2
    text = _rundir(tmp_path, "report").report_path.read_text()
    assert "variance on test items is down to -1.5 (folds 0, 1)" in text
    assert "L0 on test items is up to 30 (fold 1)" in text


def test_a_run_that_is_out_of_date_is_not_shown_but_named(tmp_path, cfg):
    for fold in (0, 1):
        _finish(tmp_path, "train_sae", fold, Page("SAE", paragraphs=[f"trained on fold {fold}"]))
    _finish(tmp_path, "tile", page=Page("Slides", paragraphs=["cut anew"]))
    rundir = _rundir(tmp_path, "report")
    rundir.left_out = {tmp_path / "fold_1" / "train_sae": "its split changed", tmp_path / "tile": "its slides changed"}
    assert report.run(cfg, rundir)["n_pages"] == 1
    text = rundir.report_path.read_text()
    assert "trained on fold 0" in text
    assert "trained on fold 1" not in text
    assert "cut anew" not in text
    for reason in ("its split changed", "its slides changed"):
        assert f"Left out, out of date: {reason}" in text
