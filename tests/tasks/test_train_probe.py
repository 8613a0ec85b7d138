"""train_probe on a small folder, through the runner."""

import csv

import numpy as np
import pandas as pd
import pytest
import torch

from src import config
from src.data.fold import open_fold
from src.models.probes import Probe
from src.report.page import read_page
from src.runs.execution import execute, open_rundir
from src.stores.latents.store import LatentStore
from src.stores.modules import load_module, spec_of
from src.tasks.train_probe import missing_inputs
from tests.synthetic import make_feature_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # Lightning 2.6 under torch 2.15
]
config.register_resolvers()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("probes")
    make_feature_folder(path / "features")
    with open(path / "features" / "dataset.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for index, row in enumerate(rows):  # "lump" is the label again, unknown of every fifth; "odd" is nothing
        row["lump"] = "" if index % 5 == 0 else "yes" if row["label"] == "tumor" else "no"
        row["odd"] = "yes" if index % 2 else "no"
        row["never"] = "no"
    with open(path / "features" / "dataset.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    always = [
        "exp=features",
        f"dataset.dir={path / 'features'}",
        "name=small",
        f"paths.data={path / 'data'}",
        f"paths.runs={path / 'runs'}",
        f"paths.cache={path / 'cache'}",
        *("sae.k=4", "train.batch_size=256", "train.epochs=20", "dataset.positive_class=tumor", "trainer=cpu"),
        *("dataset.labels=[lump,odd,never]", "splits.n_folds=3", "probe.max_epochs=60", "probe.patience=10"),
    ]

    def run(task, *overrides):
        typed = [*always, *overrides, f"task={task}"]
        composed = config.compose(typed)
        return execute(composed, typed), open_rundir(config.resolve(composed), typed), config.resolve(composed)

    for task in ("splits", "train_sae", "encode", "select_neurons"):
        run(task)
    return run


def test_exported_probes_give_the_predictions_and_tell_the_classes(run):
    results, rundir, cfg = run("train_probe", "probe.inputs=[activations,latents,neurons]", "probe.n_neurons=4")
    fold, latents = open_fold(cfg), LatentStore(rundir.upstream("encode").latents_dir())
    predictions = pd.read_csv(rundir.table("predictions"), dtype={"item_id": str})
    assert set(predictions["split"]) == {"val", "test"}
    for name in ("activations", "latents", "neurons"):
        probe, metadata = load_module(rundir.export_dir / name, Probe)
        assert (probe.classes, probe.input_name) == (("normal", "tumor"), name)
        assert spec_of(metadata) == fold.spec
        assert (probe.neuron_ids is not None) == (name == "neurons")
        of_probe = predictions[predictions["method"] == name].set_index("item_id")
        for item_id in fold.split.test:
            rows = torch.from_numpy(np.array(fold.store.rows(item_id)))
            if name != "activations":
                rows = latents.rows(item_id).to_dense()
                rows = rows if probe.neuron_ids is None else rows[:, list(probe.neuron_ids)]
            probability = probe.probabilities(probe.logits_of_rows(rows[None]))[0, 1]
            assert of_probe.loc[item_id, "prob_tumor"] == pytest.approx(probability.item(), abs=1e-5)
        assert results[f"test/{name}_auroc"] > 0.85
    metrics = pd.read_csv(rundir.table("metrics"))
    assert (metrics["n_right"] / metrics["n_items"]).tolist() == pytest.approx(metrics["accuracy"].tolist())
    fitted = {item.item_id for item in rundir.read_fitted_on()}
    assert fitted == {*fold.split.train, *fold.split.val}
    assert {figure.path for figure in read_page(rundir.page_path).figures} == {
        f"plots/confusion_{name}.png" for name in ("activations", "latents", "neurons")
    }


def test_the_planted_neuron_heads_the_rules_of_single_neurons(run):
    _, rundir, cfg = run("train_probe", "probe.inputs=[latents]")
    table = pd.read_csv(rundir.table("neuron_probes"))
    fold, latents = open_fold(cfg), LatentStore(rundir.upstream("encode").latents_dir())
    assert len(table) == 2 * latents.n_latents
    best = pd.read_csv(rundir.table("best_neurons")).set_index("class").loc["tumor"]
    means = torch.stack([latents.rows(item_id).to_dense().mean(0) for item_id in fold.split.test])
    called = means[:, int(best["neuron_id"])].numpy() > best["threshold"]
    is_tumor = np.array([fold.items[item_id].label == "tumor" for item_id in fold.split.test])
    balanced = (called[is_tumor].mean() + (~called[~is_tumor]).mean()) / 2
    assert best["test_balanced_accuracy"] == pytest.approx(balanced)
    assert balanced > 0.85
    ranked = pd.read_csv(rundir.upstream("select_neurons").table("neurons"))
    assert best["neuron_id"] == ranked.loc[0, "neuron_id"]


@pytest.mark.parametrize("overrides", [["probe.d_hidden=8"], ["probe.l1=0.01"], ["probe.pool=none"]])
def test_adam_hidden_layers_l1_and_single_rows(run, overrides):
    results, rundir, _ = run(
        "train_probe",
        "probe.inputs=[activations]",
        "probe.neuron_probes=false",
        "probe.solver=adam",
        "probe.l2=[0.0]",
        *overrides,
    )
    assert results["val/activations_auroc"] > 0.8
    probe, metadata = load_module(rundir.export_dir / "activations", Probe)
    assert metadata["solver"] == "adam"
    assert metadata["val_loss"] < 0.7
    assert bool((probe.output.weight == 0).any()) == ("probe.l1=0.01" in overrides)


def test_several_labels_each_on_the_items_of_which_it_is_known(run):
    typed = [
        "probe.columns=[lump,odd]",
        "probe.positive=yes",
        "probe.inputs=[activations]",
        "probe.class_weights=balanced",
    ]
    results, rundir, cfg = run("train_probe", *typed)
    classes = pd.read_csv(rundir.table("classes")).query("split == 'test'").set_index("class")
    test = open_fold(cfg).split.test
    assert classes.loc["odd", "n_items"] == len(test)
    assert classes.loc["lump", "n_items"] == sum(int(item_id) % 5 != 0 for item_id in test)
    assert classes.loc["lump", "auroc"] > 0.85
    predictions = pd.read_csv(rundir.table("predictions"))
    assert {"label_lump", "label_odd", "prob_lump", "prob_odd"} <= set(predictions)
    assert predictions["label_lump"].isna().any()
    probe, _ = load_module(rundir.export_dir / "activations", Probe)
    assert probe.is_multilabel
    log = rundir.log_path.read_text()
    again, _, _ = run("train_probe", *typed)  # a finished run, whose labels are compared and not fitted again
    assert again["test/activations_f1"] == results["test/activations_f1"]
    assert rundir.log_path.read_text() == log


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["probe.inputs=[neurons]", "probe.neurons=[3,99999]"],
            r"probe.neurons within 0:\d+, the neurons of the SAE, got \[99999\]",
        ),
        (["probe.columns=[ears]"], r"probe.columns among dataset.labels, got 'ears'"),
        (["probe.columns=[never]", "probe.positive=yes"], r"column 'never' to say 'yes' of some items, got 'no'"),
        (["probe.solver=lbfgs", "probe.d_hidden=3"], r"probe.solver=adam for a hidden layer"),
        (["dataset.target=never", "dataset.positive_class=null"], r"at least two classes"),
        (["probe.inputs=[pixels]"], r"probe.inputs: expected activations, latents or neurons, got 'pixels'"),
    ],
)
def test_bad_input_is_refused(run, overrides, message):
    with pytest.raises(ValueError, match=message):
        run("train_probe", *overrides)


def test_a_pipeline_trains_probes_on_images_only():
    assert missing_inputs(config.compose(["exp=cifar_mobilenet"])) == []
    (reason,) = missing_inputs(config.compose(["exp=quickstart"]))
    assert "no images" in reason
