import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from src import config
from src.records import FittedItem
from src.report.page import read_page
from src.runs import provenance
from src.runs.rundir import RunDir
from src.tasks import select_neurons
from tests.latents import write_latents

N_ROWS, N_NEURONS = 12, 20
MARKS_CENTER, MARKS_TUMOR, TWIN = 3, 7, 8


@pytest.fixture
def workplace(tmp_path):
    """40 train slides of two centres: most tumour slides are of the second, which neuron 3 marks; 7 marks tumour."""
    rng = np.random.default_rng(0)
    item_ids = [f"{number:02d}" for number in range(40)]
    labels = np.arange(40) % 2
    centers = np.where(np.arange(40) % 10 < 8, labels, 1 - labels)
    rows = ["case_id,slide_id,label,center"]
    names = ("normal", "tumor")
    rows += [f"c{one},{one},{names[label]},x{c}" for one, label, c in zip(item_ids, labels, centers, strict=True)]
    rows += ["c98,98,tumor,x1", "c99,99,normal,x0"]
    (tmp_path / "dataset.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "splits").mkdir()
    parts = {"train": pd.Series(item_ids), "val": pd.Series([], dtype=str), "test": pd.Series(["98", "99"])}
    pd.DataFrame(parts).to_csv(tmp_path / "splits/splits_0.csv", index=False)
    of_items = {}
    for item_id, label, center in zip([*item_ids, "98", "99"], [*labels, 1, 0], [*centers, 1, 0], strict=True):
        latents = rng.random((N_ROWS, N_NEURONS)) * (rng.random((N_ROWS, N_NEURONS)) < 0.2)
        latents[:, MARKS_CENTER] = 3 * center + 0.1 * rng.random(N_ROWS)
        latents[:, MARKS_TUMOR] = 0
        latents[: 2 + 3 * label, MARKS_TUMOR] = max(0.1, 1.5 + label + 0.9 * rng.standard_normal())
        latents[:, TWIN] = latents[:, MARKS_TUMOR]
        latents[:, 0] = 0
        of_items[item_id] = torch.from_numpy(latents.astype(np.float32))
    runs = {name: RunDir(tmp_path / "runs" / name, lambda task: tmp_path / "runs" / task) for name in ("encode", "it")}
    write_latents(runs["encode"].latents_dir(), of_items, digest="d")
    runs["encode"].write_json(runs["encode"].manifest_path, provenance.describe_run(0, 0) | {"status": "completed"})
    runs["encode"].write_fitted_on([FittedItem(one, f"c{one}", f"d{one}", N_ROWS) for one in item_ids])

    def select(*overrides):
        composed = config.compose(["exp=features", "task=select_neurons", "selection.channels=false", *overrides])
        cfg = OmegaConf.create(
            {
                "seed": 0,
                "fold": 0,
                "dataset": {
                    "metadata_csv": str(tmp_path / "dataset.csv"),
                    "splits_dir": str(tmp_path / "splits"),
                    "class_names": None,
                    "positive_class": "tumor",
                },
                "selection": OmegaConf.to_container(composed.selection),
            }
        )
        results = select_neurons.run(cfg, runs["it"])
        return results, pd.read_csv(runs["it"].table("neurons")), runs["it"]

    return select


def test_a_neuron_of_the_centre_is_chosen_only_without_adjusting(workplace):
    results, neurons, _ = workplace()
    assert results["neuron_id"] == MARKS_CENTER
    assert "confounder_auroc" not in neurons
    results, neurons, rundir = workplace("selection.adjust_for=[center]")
    assert results["neuron_id"] == MARKS_TUMOR
    of_neuron = neurons.set_index("neuron_id")
    assert of_neuron.loc[MARKS_CENTER, "q_value"] > 0.05
    assert of_neuron.loc[MARKS_CENTER, "confounder_auroc"] == 1
    assert of_neuron.loc[MARKS_TUMOR, "confounder_auroc"] < 0.8
    assert any(one.what == "strata train" for one in rundir.recorded())
    assert "plots/confounder.png" in [str(figure.path) for figure in read_page(rundir.page_path).figures]


def test_dead_and_tied_neurons_are_said(workplace, caplog):
    with caplog.at_level("INFO"):
        workplace("selection.adjust_for=[center]")
    said = (
        "1 neurons are constant and were not tested; 1 have the values of another one; 1 share the best one's p-value"
    )
    assert said in caplog.text


@pytest.mark.parametrize("method", ["mann_whitney", "auroc", "effect_size", "logistic", "mil_weights"])
def test_every_method_ranks_the_neurons_of_tumour_first(workplace, method):
    adjust = () if method == "mil_weights" else ("selection.adjust_for=[center]",)
    _, neurons, _ = workplace(f"selection.method={method}", *adjust)
    best = set(neurons["neuron_id"][:3])
    assert {MARKS_TUMOR, TWIN} <= best
    assert ("weight" in neurons) == (method in ("logistic", "mil_weights"))


def test_permutation_and_other_pools(workplace):
    _, neurons, _ = workplace("selection.correction=max_t", "selection.n_permutations=500", "selection.n_bootstrap=0")
    assert neurons["q_value"].min() == pytest.approx(1 / 501)
    assert "top_share" not in neurons
    for pool in ("mean", "top_mean", "active_fraction"):
        _, neurons, _ = workplace(f"selection.pool={pool}", "selection.adjust_for=[center]")
        assert set(neurons["neuron_id"][:2]) == {MARKS_TUMOR, TWIN}


def test_the_published_recipe_writes_its_table_and_counts_neurons_of_normal_slides(workplace):
    _, neurons, rundir = workplace("selection=sae1n")
    table = pd.read_csv(rundir.table("sae_analysis_t_test"))
    assert list(table) == ["unit_id", "t_statistic", "p_value", "tumor_mean_activation", "normal_mean_activation"]
    assert table["unit_id"].tolist() == neurons["neuron_id"].tolist()
    np.testing.assert_allclose(table["p_value"], neurons["p_value"], rtol=1e-5)


def test_a_column_that_is_not_there_is_named(workplace):
    with pytest.raises(ValueError, match=r"columns \['scanner'\] of selection.adjust_for"):
        workplace("selection.adjust_for=[scanner]")
