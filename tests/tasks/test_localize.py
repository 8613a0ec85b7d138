import csv
from collections import defaultdict

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from src.analysis.methods import parse_methods, write_methods
from src.data.slides.annotation_files import read_geojson
from src.records import FittedItem
from src.report.page import read_page
from src.runs import provenance
from src.runs.rundir import RunDir
from src.stores.patch_scores import PatchScores, read_patch_scores, write_patch_scores
from src.tasks import localize
from tests.latents import write_latents

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("openslide")

SIZE = 64
GRID = 8
NEURON, RANDOM, CHANNEL = 3, 5, 1
OUTLINE = [(128, 128), (320, 128), (320, 256), (128, 256)]
SLIDES = {f"0{k}": ("tumor" if k % 2 else "normal") for k in range(8)}
TRAIN, VAL, TEST = ["00", "01"], ["02", "03"], ["04", "05", "06", "07"]


def _coords():
    x, y = np.meshgrid(np.arange(GRID) * SIZE, np.arange(GRID) * SIZE)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def _inside():
    coords = _coords() + SIZE / 2
    return (coords > (128, 128)).all(axis=1) & (coords < (320, 256)).all(axis=1)


def _write_slide(path, rng):
    pixels = rng.integers(120, 240, (GRID * SIZE, GRID * SIZE, 3), dtype=np.uint8)
    tifffile.imwrite(path, pixels, tile=(64, 64), photometric="rgb", compression="jpeg", compressionargs={"level": 90})


def _write_outline(path):
    points = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(OUTLINE))
    path.write_text(
        "<ASAP_Annotations><Annotations>"
        f'<Annotation Name="a" Type="Polygon" PartOfGroup="Tumor" Color="#F4FA58"><Coordinates>{points}</Coordinates>'
        '</Annotation></Annotations><AnnotationGroups><Group Name="Tumor" PartOfGroup="None" Color="#00ff00">'
        "<Attributes/></Group></AnnotationGroups></ASAP_Annotations>"
    )


@pytest.fixture
def cfg(tmp_path):
    """A data set of eight slides whose neuron 3 fires in the outlines of tumour slides, and almost nowhere else."""
    rng = np.random.default_rng(0)
    data = tmp_path / "data"
    for folder in ("slides", "annotations", "features/h5_files", "splits"):
        (data / folder).mkdir(parents=True)
    with open(data / "dataset.csv", "w", newline="") as file:
        csv.writer(file).writerows([("case_id", "item_id", "label"), *((f"c{s}", s, k) for s, k in SLIDES.items())])
    parts = [TRAIN, VAL, TEST]
    pd.DataFrame({name: pd.Series(part) for name, part in zip(("train", "val", "test"), parts, strict=True)}).to_csv(
        data / "splits/splits_0.csv", index=False
    )
    for item_id, label in SLIDES.items():
        _write_slide(data / f"slides/{item_id}.tif", rng)
        if label == "tumor":
            _write_outline(data / f"annotations/{item_id}.xml")
        with h5py.File(data / f"features/h5_files/{item_id}.h5", "w") as file:
            features = rng.normal(size=(GRID**2, 4)).astype(np.float32)
            features[:, CHANNEL] += 2 * (_inside() & (label == "tumor"))
            file["features"] = features
            file["coords"] = _coords()
    return OmegaConf.create(
        {
            "seed": 0,
            "fold": 0,
            "paths": {"cache": str(tmp_path / "cache")},
            "backbone": {"name": "none"},
            "tile": {},
            "dataset": {
                "slides_dir": str(data / "slides"),
                "annotations_dir": str(data / "annotations"),
                "patches_dir": None,
                "features_dir": str(data / "features"),
                "metadata_csv": str(data / "dataset.csv"),
                "splits_dir": str(data / "splits"),
                "class_names": None,
                "positive_class": "tumor",
                "standardize": False,
                "patch_size_level0": None,
                "on_bad_file": "error",
            },
            "localization": OmegaConf.load("conf/localization/default.yaml"),
        }
    )


def _finish(rundir, fitted=()):
    manifest = provenance.describe_run(0, 0) | {"status": "completed"}
    rundir.write_json(rundir.manifest_path, manifest)
    rundir.write_fitted_on(FittedItem(item_id, f"c{item_id}", f"d{item_id}", GRID**2) for item_id in fitted)
    return rundir


@pytest.fixture
def rundir(tmp_path):
    """The run directory of localize, with those of the runs before it."""
    rng = np.random.default_rng(1)
    runs = {name: RunDir(tmp_path / "runs" / name, lambda task: tmp_path / "runs" / task) for name in _TASKS}
    of_items, scores = {}, defaultdict(dict)
    for item_id, label in SLIDES.items():
        latents = rng.random((GRID**2, 8)) * (rng.random((GRID**2, 8)) < 0.1)
        latents[:, NEURON] += 3 * rng.random(GRID**2) * (_inside() & (label == "tumor"))
        of_items[item_id] = torch.from_numpy(latents.astype(np.float32))
        for method in ("attention_activations", "attention_latents"):
            attention = np.exp(rng.normal(size=GRID**2) + 2 * _inside())
            attention = (attention / attention.sum())[:, None].astype(np.float32)
            scores[method][item_id] = PatchScores(("normal", "tumor"), attention, None)
    for method, of_method in scores.items():
        path = runs["train_mil"].path / "analysis" / "patch_scores" / f"{method}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_patch_scores(path, of_method, ("normal", "tumor"))
    methods = parse_methods(["max_latents", "attention_activations", "attention_latents"], ["max", "attention"])
    write_methods(methods, runs["train_mil"].table("methods"))
    write_latents(runs["encode"].latents_dir(), of_items, dict.fromkeys(of_items, _coords()), SIZE)
    order = [NEURON, 0, RANDOM]
    ranking = pd.DataFrame({"rank": [1, 2, 3], "neuron_id": order, "density": [0.1, 0.0, 0.2]})
    ranking.to_csv(runs["select_neurons"].table("neurons"), index=False)
    ranking.assign(neuron_id=[CHANNEL, 0, 2]).to_csv(runs["select_neurons"].table("channels"), index=False)
    for name, fitted in _TASKS.items():
        if name != "localize":
            _finish(runs[name], fitted)
    return runs["localize"]


_TASKS = {"train_sae": TRAIN, "encode": TRAIN, "select_neurons": TRAIN, "train_mil": [*TRAIN, *VAL], "localize": ()}


@pytest.mark.slow
def test_neuron_is_scored_beside_channel_attention_and_a_random_neuron(cfg, rundir):
    results = localize.run(cfg, rundir)
    table = pd.read_csv(rundir.table("localization"))
    methods = ["neuron", "channel", "attention_activations", "attention_latents", "random_neuron"]
    assert table["method"].tolist() == methods
    for row in table.itertuples():
        assert results[f"test/{row.method}_patch_auroc"] == pytest.approx(row.auroc)
        assert results[f"test/{row.method}_patch_average_precision"] == pytest.approx(row.average_precision)
    assert (results["neuron_id"], results["random_neuron_id"], results["channel_id"]) == (NEURON, RANDOM, CHANNEL)
    assert results["test/neuron_patch_auroc"] > 0.95
    assert 0.85 < results["test/channel_patch_auroc"] < results["test/neuron_patch_auroc"]
    assert 0.4 < results["test/random_neuron_patch_auroc"] < 0.6
    assert set(table["n_patches"]) == {4 * GRID**2}
    assert set(table["n_positive"]) == {2 * 6}
    by_slide = pd.read_csv(rundir.table("localization_slides"), dtype={"item_id": str})
    assert sorted(set(by_slide["item_id"])) == ["05", "07"]
    page = read_page(rundir.page_path)
    shown = [str(figure.path) for figure in page.figures]
    assert sorted(shown[:2]) == ["plots/overlay_05.png", "plots/overlay_07.png"]
    assert shown[2:] == ["plots/patch_curves.png", "plots/froc.png", "plots/exemplars.png"]
    # Thresholds come from validation slide 03, and each outline is one lesion.
    scores = table.set_index("method")
    assert scores["threshold"].notna().all()
    assert scores.loc["neuron", "f1"] > scores.loc["random_neuron", "f1"]
    assert scores.loc["neuron", "dice"] > 0.7
    assert scores.loc["neuron", "froc"] == 1
    assert scores.loc["neuron", "pointing_game"] == 1
    pairs = pd.read_csv(rundir.table("localization_pairs"))
    assert pairs["other"].tolist() == methods[1:]
    regions = read_geojson(rundir.path / "geojson" / "05.geojson")
    assert len(regions) >= 6
    assert {tuple(region.points[0]) for region in regions} <= {tuple(corner) for corner in _coords()}


def test_without_slides_maps_are_drawn_from_coords(cfg, rundir, caplog):
    cfg.dataset.slides_dir = None
    cfg.localization.n_bootstrap = 20
    cfg.localization.mpp = 0.5
    (rundir.path.parent / "train_mil/manifest.json").unlink()
    results = localize.run(cfg, rundir)
    assert results["test/neuron_patch_auroc"] > 0.95
    assert "maps are drawn from coords" in caplog.text
    shown = [str(figure.path) for figure in read_page(rundir.page_path).figures]
    assert "plots/exemplars.png" not in shown
    assert sum(name.startswith("plots/overlay_") for name in shown) == 2


def test_instance_scores_are_scored_beside_attention(cfg, rundir):
    trained = RunDir(rundir.path.parent / "train_mil")
    rng = np.random.default_rng(3)
    scores = {}
    for item_id, label in SLIDES.items():
        marked = 3.0 * (_inside() & (label == "tumor"))
        attention = np.exp(rng.normal(size=GRID**2))
        logits = np.stack([-marked, marked], axis=1) + rng.normal(size=(GRID**2, 2))
        attention = (attention / attention.sum())[:, None].astype(np.float32)
        scores[item_id] = PatchScores(("normal", "tumor"), attention, logits.astype(np.float32))
    folder = trained.path / "analysis" / "patch_scores"
    folder.mkdir(parents=True, exist_ok=True)
    write_patch_scores(folder / "attention_latents.h5", scores, ("normal", "tumor"))
    cfg.localization.n_bootstrap = 20
    cfg.localization.n_overlays = 0
    results = localize.run(cfg, rundir)
    assert results["test/attention_latents_instances_patch_auroc"] > 0.95
    assert 0.3 < results["test/attention_latents_patch_auroc"] < 0.7


@pytest.mark.slow
def test_tumour_slide_without_an_outline_is_left_out_and_named(cfg, rundir, caplog):
    (rundir.path.parents[1] / "data/annotations/05.xml").unlink()
    localize.run(cfg, rundir)
    assert set(pd.read_csv(rundir.table("localization"))["n_slides"]) == {3}
    assert "Left out test slide 05: it is tumor and has no outline" in caplog.text
    assert any("Left out: 05" in paragraph for paragraph in read_page(rundir.page_path).paragraphs)


@pytest.mark.slow
def test_without_a_ranking_of_channels_none_is_scored(cfg, rundir):
    (rundir.path.parent / "select_neurons/analysis/channels.csv").unlink()
    results = localize.run(cfg, rundir)
    assert "test/neuron_patch_auroc" in results
    assert not any("channel" in name for name in results)
    assert not any("raw channel" in paragraph for paragraph in read_page(rundir.page_path).paragraphs)


@pytest.mark.slow
def test_without_classifiers_attention_is_not_scored_and_that_is_said(cfg, rundir):
    (rundir.path.parent / "train_mil/manifest.json").unlink()
    results = localize.run(cfg, rundir)
    assert "test/attention_activations_patch_auroc" not in results
    assert any("no finished train_mil run" in paragraph for paragraph in read_page(rundir.page_path).paragraphs)


def test_ranking_made_with_a_test_slide_is_refused(cfg, rundir):
    _finish(RunDir(rundir.path.parent / "select_neurons"), [*TRAIN, "05"])
    with pytest.raises(ValueError, match="slide '05' in both"):
        localize.run(cfg, rundir)


def test_classifier_fitted_on_a_test_slide_is_refused(cfg, rundir):
    _finish(RunDir(rundir.path.parent / "train_mil"), [*TRAIN, "05"])
    with pytest.raises(ValueError, match="slide '05' in both"):
        localize.run(cfg, rundir)


def test_unknown_patch_size_says_where_it_was_looked_for(cfg, rundir):
    index = rundir.path.parent / "encode/latents/all/index.csv"
    pd.read_csv(index, dtype={"item_id": str}).assign(patch_size_level0=0).to_csv(index, index=False)
    with pytest.raises(ValueError, match=r"size of slide '04', got no size: looked in the latents.*patches_dir"):
        localize.run(cfg, rundir)


def test_attention_of_other_features_is_refused(cfg, rundir):
    path = rundir.path.parent / "train_mil/analysis/patch_scores/attention_latents.h5"
    few = PatchScores(("normal", "tumor"), np.full((3, 1), 1 / 3, np.float32), None)
    write_patch_scores(path, read_patch_scores(path) | {"04": few}, ("normal", "tumor"))
    with pytest.raises(ValueError, match=r"Expected 64 scores of slide '04', .*'attention_latents': 3"):
        localize.run(cfg, rundir)


def test_no_outlines_at_all_is_an_error(cfg, rundir):
    cfg.localization.exclude_slides = TEST
    with pytest.raises(ValueError, match=r"Expected test slides with outlines in .*exclude_slides"):
        localize.run(cfg, rundir)


def test_missing_inputs_are_told(cfg, tmp_path):
    assert localize.missing_inputs(cfg) == []
    cfg.dataset.slides_dir = None
    cfg.dataset.annotations_dir = str(tmp_path / "gone")
    cfg.dataset.positive_class = None
    reasons = localize.missing_inputs(cfg)
    assert [reason.split()[0] for reason in reasons] == ["dataset.annotations_dir", "dataset.positive_class"]
