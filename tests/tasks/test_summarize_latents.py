"""summarize_latents on a small folder: stored and computed latents, published files, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from src import config
from src.analysis.class_statistics import rank_neurons_for_classes, read_class_statistics
from src.data.fold import keep_slides
from src.records import read_items
from src.runs.execution import execute, open_rundir
from src.split_files import read_split
from src.stores.case_matrix import read_case_matrix
from src.stores.concept_files import read_concept_ranking, read_concepts
from src.stores.feature_data import read_feature_data
from src.stores.latents.store import LatentStore
from src.stores.neurons import read_neurons
from src.tasks import summarize_latents
from tests.synthetic import make_feature_folder

pytestmark = pytest.mark.slow
config.register_resolvers()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("summary")
    make_feature_folder(path / "features", n_slides=80, n_patches=30)
    always = [
        *("exp=features", f"dataset.dir={path / 'features'}", "dataset.positive_class=tumor", "trainer=cpu"),
        *(f"paths.{name}={path / name}" for name in ("data", "runs", "cache")),
        *("sae.k=8", "train.batch_size=64", "train.epochs=20", "splits.n_folds=2", "splits.val_share=0.25"),
        "name=small",
    ]

    def run(task, *overrides):
        typed = [*always, *overrides, f"task={task}"]
        composed = config.compose(typed)
        return execute(composed, typed), open_rundir(config.resolve(composed), typed)

    for task in ("splits", "train_sae", "encode"):
        run(task)
    run.path = path
    return run


def dense_items(run, part="train"):
    """Returns id, label, case and dense latents of each item of a part."""
    (splits,) = run.path.rglob("splits_0.csv")
    items = {item.item_id: item for item in read_items(run.path / "features" / "dataset.csv")}
    store = LatentStore(next(run.path.rglob("latents/all")))
    ids = getattr(read_split(splits.parent, 0), part)
    return [items[item_id] for item_id in ids], [store.rows(item_id).to_dense().double().numpy() for item_id in ids]


def test_tables_are_what_brute_force_gives(run):
    results, rundir = run("summarize_latents")
    items, latents = dense_items(run)
    rows = np.concatenate(latents)
    assert (results["n_items"], results["n_rows"]) == (len(items), len(rows))
    neurons = read_neurons(rundir.path / "analysis")
    np.testing.assert_allclose(neurons["mean"], rows.mean(axis=0))
    np.testing.assert_allclose(neurons["frequency"], (rows > 0).mean(axis=0))
    np.testing.assert_allclose(neurons["max"], rows.max(axis=0))
    silent = (rows > 0).sum(axis=0) == 0
    np.testing.assert_array_equal(neurons["mean_active"].isna(), silent)
    np.testing.assert_array_equal(neurons["top_class"].isna(), silent)

    statistics = read_class_statistics(rundir.path / "analysis" / "class_statistics.npz")
    assert statistics.classes == ("normal", "tumor")
    for index, name in enumerate(statistics.classes):
        of_class = [one for item, one in zip(items, latents, strict=True) if item.label == name]
        assert statistics.n_items[index] == len(of_class)
        np.testing.assert_allclose(statistics.means[index], np.mean([one.mean(axis=0) for one in of_class], axis=0))
        counts = np.sum([(one > 0.2).any(axis=0) for one in of_class], axis=0)
        np.testing.assert_array_equal(statistics.counts[index], counts)

    best = int(rank_neurons_for_classes(statistics)[1, 0])
    top = pd.read_csv(rundir.path / "analysis" / "top_items.csv", dtype={"item_id": str})
    of_best = top[top["neuron_id"] == best]
    maxima = np.array([one[:, best].max() for one in latents])
    np.testing.assert_allclose(of_best["value"], np.sort(maxima)[::-1][: len(of_best)], rtol=1e-6)
    strongest = next(position for position, item in enumerate(items) if item.item_id == of_best["item_id"].iloc[0])
    assert of_best["row"].iloc[0] == latents[strongest][:, best].argmax()
    # The planted direction marks the tumour slides.
    assert of_best["label"].iloc[0] == neurons["top_class"][best] == "tumor"
    shares = of_best.groupby("label")["value"].sum() / of_best["value"].sum()
    assert neurons["class_purity"][best] == pytest.approx(shares["tumor"], rel=1e-5)
    assert neurons["label_entropy"][best] == pytest.approx(-(shares * np.log(shares)).sum(), rel=1e-5)


def test_cases_and_the_steadiness_of_rankings(run):
    results, rundir = run("summarize_latents")
    items, latents = dense_items(run)
    matrix = read_case_matrix(rundir.path / "analysis" / "cases.npz")
    assert list(matrix.case_ids) == sorted({item.case_id for item in items})
    case = matrix.case_ids[3]
    of_case = [one.mean(axis=0) for item, one in zip(items, latents, strict=True) if item.case_id == case]
    np.testing.assert_allclose(matrix.values[[3]].toarray()[0], np.mean(of_case, axis=0))
    assert results["cases/auroc"] > 0.9
    assert (rundir.path / "plots" / "cases.png").is_file()
    table = pd.read_csv(rundir.path / "analysis" / "consistency.csv")
    assert set(table["compared"]) == {"halves", "val"}
    assert results["consistency/val_overlap"] > results["consistency/val_expected"]


def test_latents_that_are_computed_give_what_stored_ones_do(run):
    _, stored = run("summarize_latents")
    _, computed = run("summarize_latents", "latent_summary.source=computed")
    assert computed.path != stored.path
    for name in ("neurons", "top_items", "class_neurons"):
        mine, other = (pd.read_csv(one.path / "analysis" / f"{name}.csv") for one in (computed, stored))
        pd.testing.assert_frame_equal(mine, other, rtol=1e-4)
    assert "encode" not in json.loads(computed.manifest_path.read_text())["upstream"]


def test_what_was_fitted_is_passed_on(run):
    _, rundir = run("summarize_latents")
    items, _ = dense_items(run)
    assert {one.item_id for one in rundir.read_fitted_on()} == {item.item_id for item in items}
    with pytest.raises(ValueError, match="fitted"):
        run("summarize_latents", "latent_summary.split=val", "latent_summary.compare_with=null")


def test_published_files_come_back(run):
    export = "latent_summary.export=[feature_data,concepts]"
    _, rundir = run("summarize_latents", "latent_summary.recipe=patchsae", export)
    (folder,) = (rundir.path / "published" / "out" / "feature_data" / "sae_small" / "base").iterdir()
    data = read_feature_data(folder, n_classes=2)
    items, latents = dense_items(run)
    means = np.stack([one.mean(axis=0) for one in latents])
    np.testing.assert_allclose(data.sparsity, (means > 0).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(data.values[:, 0], means.max(axis=0), rtol=1e-5)
    labels = np.array([item.label == "tumor" for item in items])
    counts = np.stack(
        [
            sum((one > 0.2).sum(axis=0) for one, is_tumor in zip(latents, labels, strict=True) if is_tumor == label)
            for label in (0, 1)
        ]
    )
    np.testing.assert_array_equal(data.counts, counts)
    published = rundir.path / "published" / "eval_outputs"
    concepts = read_concepts(published / f"sae_concepts_{folder.name}_train_global.pth", n_classes=2)
    np.testing.assert_allclose(concepts.strengths, means, rtol=1e-5, atol=1e-7)
    assert concepts.paths == tuple(item.item_id for item in items)
    neuron_ids, importance = read_concept_ranking(
        published / "class_wise_concepts" / "train" / "top_k_concepts_class=1.json"
    )
    np.testing.assert_allclose(importance, np.sort(means[labels].mean(axis=0))[::-1], rtol=1e-6)
    assert len(neuron_ids) == means.shape[1]

    _, rundir = run("summarize_latents", "latent_summary.recipe=cytosae", "latent_summary.transpose=true", export)
    (folder,) = (rundir.path / "published" / "out" / "feature_data" / "sae_small" / "base").iterdir()
    n_cases = len({item.case_id for item in items})
    assert np.load(folder / "cls_sae_cnt.npy").shape == (means.shape[1], n_cases)
    assert read_feature_data(folder, transpose=True).counts.shape == (n_cases, means.shape[1])
    assert torch.load(folder / "max_activating_image_indices.pt", weights_only=True).dtype == torch.float32


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("latent_summary.recipe=best", "recipe"),
        ("latent_summary.export=[all]", "export"),
        ("latent_summary.export=[feature_data]", "recipe=patchsae or cytosae"),
        ("latent_summary.ignore_label=stroma", "classes .'normal', 'tumor'., got 'stroma'"),
        ("latent_summary.source=disk", "auto, stored or computed"),
        ("latent_summary.compare_with=all", "train, val or test"),
        ("latent_summary.split=valid", "latent_summary.split"),
        ("latent_summary.rule=best", "rule"),
    ],
)
def test_unknown_choices_are_named(run, override, message):
    with pytest.raises(ValueError, match=message):
        run("summarize_latents", override)


def test_without_labels_neurons_are_described_and_classes_are_not(run):
    _, trained = run("train_sae")
    _, rundir = run(
        "summarize_latents", f"sae_run={trained.path}", "dataset.target=null", "dataset.positive_class=null"
    )
    neurons = read_neurons(rundir.path / "analysis")
    assert "label_entropy" not in neurons
    with pytest.raises(FileNotFoundError, match=r"dataset\.target"):
        read_class_statistics(rundir.path / "analysis" / "class_statistics.npz")


def test_all_items_of_a_cohort_that_only_receives_an_sae(run):
    _, trained = run("train_sae")
    given = ("fold=all", f"sae_run={trained.path}", "latent_summary.split=test", "name=cohort")
    results, rundir = run("summarize_latents", *given)
    assert results["n_items"] == 80
    table = pd.read_csv(rundir.path / "analysis" / "consistency.csv")
    assert set(table["compared"]) == {"halves"}


def test_a_part_without_items_and_a_class_without_items_are_said(run, monkeypatch):
    open_fold = summarize_latents.open_fold

    def keep(wanted):
        def opened(cfg):
            fold = open_fold(cfg)
            kept = {item_id for item_id, item in fold.items.items() if wanted(item)}
            return replace(fold, split=keep_slides(fold.split, kept))

        monkeypatch.setattr(summarize_latents, "open_fold", opened)

    keep(lambda _: False)
    with pytest.raises(ValueError, match="Expected items in train of fold 0, got none"):
        run("summarize_latents", "overwrite=true")
    keep(lambda item: item.label == "tumor")
    _, rundir = run("summarize_latents", "overwrite=true")
    assert "No train items of normal" in rundir.page_path.read_text()
    statistics = read_class_statistics(rundir.path / "analysis" / "class_statistics.npz")
    with pytest.raises(ValueError, match="got none of 'normal'"):
        rank_neurons_for_classes(statistics)
    monkeypatch.undo()
    run("summarize_latents", "overwrite=true")


def test_folds_of_one_sae_are_compared(run):
    dictionary = run.path / "dictionary"
    dictionary.mkdir()
    generator = torch.Generator().manual_seed(0)
    weights = torch.nn.functional.normalize(torch.randn(24, 16, generator=generator), dim=1)
    state = {"encoder.weight": weights, "encoder.bias": torch.zeros(24), "decoder.weight": weights.T.clone()}
    state |= {"b_dec": torch.zeros(16), "k": torch.tensor(4), "threshold": torch.tensor(-1.0)}
    torch.save(state, dictionary / "ae.pt")
    settings = {"trainer": {"dict_class": "AutoEncoderTopK", "trainer_class": "TopKTrainer"}}
    (dictionary / "config.json").write_text(json.dumps(settings))
    _, converted = run("convert", f"convert.path={dictionary}")
    shared = [f"sae_run={converted.path}", "mil.methods=[max_latents]", "mil.max_epochs=1", "mil.min_epochs=1"]
    for fold in (0, 1):
        for task in ("encode", "select_neurons", "train_mil", "summarize_latents"):
            run(task, f"fold={fold}", *shared)
    _, rundir = run("summarize_cv", *shared)
    table = pd.read_csv(rundir.path / "analysis" / "neuron_consistency.csv")
    assert set(zip(table["fold"], table["other_fold"], strict=True)) == {(0, 1)}
    assert set(table["class"]) == {"normal", "tumor"}
