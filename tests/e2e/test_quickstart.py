"""What the README promises of `make demo`, on the full quickstart."""

import json
import os

import numpy as np
import pandas as pd
import pytest

from experiments.quickstart.chance import count_chance_findings
from experiments.quickstart.figures import read as read_quoted
from src.analysis.pooling import pool_items
from src.file_lock import wait_for_lock
from src.records import read_items
from src.split_files import read_split
from src.stores.latents.store import LatentStore
from tests.command import run_command

pytestmark = pytest.mark.slow
pytest.importorskip("openslide")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """The full quickstart, made once for all processes that run tests."""
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "the_quickstart"
    with wait_for_lock(path / ".lock", "the quickstart"):
        run_command("exp=quickstart", "task=pipeline", f"paths.data={path / 'data'}", f"paths.runs={path / 'runs'}")
    return path


def results(workplace, task):
    return json.loads((workplace / "runs/quickstart/default/fold_0" / task / "results.json").read_text())


def test_slides_are_as_many_as_promised(workplace):
    data = workplace / "data/synthetic_slides"
    slides = read_items(data / "dataset.csv")
    assert len(slides) == 60
    assert len({slide.case_id for slide in slides}) == 40
    tile = json.loads((workplace / "runs/synthetic_slides/tile/patches_96_level0/results.json").read_text())
    assert tile["n_patches"] >= 10_000
    outlined = {path.stem for path in (data / "annotations").glob("*.xml")}
    assert outlined == {slide.item_id for slide in slides if slide.label == "tumor"}


def test_top_neuron_finds_tumour_that_slide_labels_alone_named(workplace):
    found = results(workplace, "localize")
    assert found["test/neuron_patch_auroc"] >= 0.90
    assert 0.3 < found["test/random_neuron_patch_auroc"] < 0.7
    fitted = pd.read_csv(workplace / "runs/quickstart/default/fold_0/select_neurons/fitted_on.csv", dtype=str)
    (splits,) = (workplace / "data/synthetic_slides").glob("splits_*")
    assert set(fitted["item_id"]) == set(read_split(splits, 0).train)
    report = (workplace / "runs/quickstart/default/report/report.html").read_text()
    for compared in ("Best raw channel", "Attention MIL on activations", "Random neuron", "random weights"):
        assert compared in report


def test_sae_is_sparse_and_explains_test_slides(workplace):
    trained, encoded = results(workplace, "train_sae"), results(workplace, "encode")
    export = json.loads((workplace / "runs/quickstart/default/fold_0/train_sae/export/cfg.json").read_text())
    k = export["metadata"]["sae"]["k"]
    assert k <= 32
    assert trained["n_latents"] >= 2 * trained["d_in"]
    assert encoded["test/l0"] == pytest.approx(k, rel=0.10)
    assert encoded["test/explained_variance"] >= 0.6


def test_permuted_labels_find_something_in_at_most_5_percent_of_permutations(workplace):
    data = workplace / "data/synthetic_slides"
    slides = {slide.item_id: slide for slide in read_items(data / "dataset.csv")}
    (splits,) = data.glob("splits_*")
    train = read_split(splits, 0).train
    store = LatentStore(workplace / "runs/quickstart/default/fold_0/encode/latents/all")
    maxima = pool_items(store.read(train), train).values
    labels = np.array([int(slides[item_id].label == "tumor") for item_id in train])
    cases = [slides[item_id].case_id for item_id in train]
    assert count_chance_findings(maxima, labels, cases, ("normal", "tumor"), range(200)) <= 0.05 * 200


def test_the_readme_quotes_what_the_run_gives(workplace):
    quoted, scores = read_quoted()
    trained, encoded, ranked = (results(workplace, task) for task in ("train_sae", "encode", "select_neurons"))
    for name in ("n_train_rows", "n_steps", "d_in", "n_latents"):
        assert quoted[name] == trained[name]
    for name in ("n_items", "n_rows"):
        assert quoted[name] == encoded[name]
    # Machines round differently, and training carries it on.
    assert quoted["test/explained_variance"] == pytest.approx(encoded["test/explained_variance"], abs=0.01)
    assert quoted["test/l0"] == pytest.approx(encoded["test/l0"], abs=0.5)
    assert quoted["n_found"] == pytest.approx(ranked["n_found"], abs=5)
    found = results(workplace, "localize")
    for method, score in scores["auroc"].items():
        assert score == pytest.approx(found[f"test/{method}_patch_auroc"], abs=0.03)
