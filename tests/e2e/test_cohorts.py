"""What was fitted on one cohort, applied to another one without labels, and scored once it has them."""

import json

import pandas as pd
import pytest

from src.data.synthetic.slides import generate_slides
from tests.command import run_command

pytestmark = pytest.mark.slow


def run(folder, *overrides, code=0):
    """Runs the command; returns what it said."""
    places = [f"paths.data={folder / 'data'}", f"paths.runs={folder / 'runs'}", "trainer=cpu"]
    return run_command("exp=quickstart_small", *places, *overrides, code=code)


def draw_cohort(root):
    """Draws slides of other patients, with a csv that has no labels; returns the csv with labels."""
    generate_slides(root, n_slides=18, n_cases=18, size=768, seed=1)
    for path in [*(root / "slides").iterdir(), *(root / "annotations").iterdir()]:
        path.rename(path.with_name(f"b_{path.name}"))
    table = pd.read_csv(root / "dataset.csv", dtype=str)
    table[["case_id", "slide_id"]] = "b_" + table[["case_id", "slide_id"]]
    table[["case_id", "slide_id"]].to_csv(root / "dataset.csv", index=False)
    return table.to_csv(index=False)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohorts")
    methods = "mil.methods=[max_activations,max_top_neurons,neuron]"
    run(folder, "task=pipeline", "train.epochs=20", methods, "localization.n_overlays=1")
    tasks = ("train_sae", "select_neurons", "train_mil")
    return folder, {task: next(folder.glob(f"runs/quickstart_small/*/fold_0/{task}")) for task in tasks}


def test_a_fitted_study_is_applied_to_a_cohort_and_scored_later(study):
    folder, fitted = study
    keys = {"train_sae": "sae_run", "select_neurons": "ranking_run", "train_mil": "mil_run"}
    given = [f"{key}={fitted[task]}" for task, key in keys.items()]
    cohort = ["name=cohort_b", "dataset.name=cohort_b", "dataset.generator=null", "fold=all"]
    path = folder / "data" / "cohort_b" / "dataset.csv"
    whole = draw_cohort(path.parent)

    said = run(folder, *cohort, *given, "task=pipeline")
    assert "Skipping train_mil: mil_run names a run of it" in said
    (predicted,) = folder.glob("runs/cohort_b/*/fold_all/predict")
    results = json.loads((predicted / "results.json").read_text())
    assert results["n_items"] == 18
    assert results["n_labelled"] == 0
    assert not any(key.startswith("test/") for key in results)
    predictions = pd.read_csv(predicted / "analysis" / "predictions.csv")
    assert len(predictions) == 3 * 18
    assert predictions["label"].isna().all()

    path.write_text(whole)
    run(folder, *cohort, *given, "task=pipeline")
    scored = json.loads((predicted / "results.json").read_text())
    assert scored["n_labelled"] == 18
    assert scored["neuron_id"] == results["neuron_id"]
    assert scored["test/neuron_maximum_auroc"] > 0.8
    assert scored["test/max_activations_auroc"] > 0.8
    metrics = pd.read_csv(predicted / "analysis" / "metrics.csv").set_index(["method", "metric"])
    auroc = metrics.loc[("max_activations", "auroc")]
    assert auroc["value"] == pytest.approx(scored["test/max_activations_auroc"])
    assert auroc["low"] <= auroc["value"] <= auroc["high"]
    assert scored["test/neuron_maximum_auroc_low"] <= scored["test/neuron_maximum_auroc"]
    calibration = pd.read_csv(predicted / "analysis" / "calibration.csv")
    assert calibration["brier"].between(0, 1).all()
    assert (predicted / "plots" / "reliability.png").is_file()
    shift = pd.read_csv(predicted / "analysis" / "firing_shift.csv")
    assert shift["neuron_id"][0] == scored["neuron_id"]  # the chosen one first
    assert shift["study_rate"][0] == pytest.approx(scored["shift/study_rate"])
    # Both cohorts come from one generator: the tumour neuron fires about as often here.
    assert 0.2 < scored["shift/cohort_rate"] / scored["shift/study_rate"] < 5
    again = pd.read_csv(predicted / "analysis" / "predictions.csv")
    pd.testing.assert_frame_equal(again.drop(columns="label"), predictions.drop(columns="label"))


def test_cases_that_something_was_fitted_on_are_refused(study):
    folder, fitted = study
    said = run(folder, "name=same", "fold=all", f"sae_run={fitted['train_sae']}", "task=encode", code=1)
    assert "to be fitted on other cases" in said


def test_neurons_of_another_sae_and_other_activations_are_refused(study):
    folder, fitted = study
    cohort = ["name=cohort_c", "dataset.name=cohort_b", "dataset.generator=null", "fold=all"]
    said = run(folder, *cohort, "backbone.layer=1", f"sae_run={fitted['train_sae']}", "task=pipeline", code=1)
    assert "two that differ in layer" in said
    assert "layer 1" in said
    assert "layer 2" in said
