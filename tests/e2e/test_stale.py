"""What was made from something that has changed is never taken for up to date, and what was not is left alone."""

import functools
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from src import config
from src.records import read_items
from src.runs.execution import execute
from src.runs.lineage import StaleRunError
from src.split_files import read_split

pytest.importorskip("openslide")
pytestmark = pytest.mark.slow

SETTINGS = (
    "exp=quickstart_small",
    "tile.patch_size=48",
    "backbone.image_size=48",
    "dataset.generator.n_slides=16",
    "dataset.generator.n_cases=16",
    "dataset.generator.size=384",
    "splits.n_folds=2",
    "sae.expansion=1",
    "sae.k=4",
    "train.epochs=2",
    "train.batch_size=256",
    "mil.max_epochs=1",
    "mil.methods=[attention_activations,neuron]",
    "localization.n_bootstrap=20",
    "summary.n_bootstrap=20",
    "trainer=cpu",
)
TASKS = (
    *("tile", "embed", "splits", "train_sae", "evaluate_sae", "encode", "select_neurons"),
    *("summarize_latents", "train_mil", "localize"),
    *("summarize_cv", "report"),
)
AFTER_SAE = (
    *("evaluate_sae", "encode", "select_neurons", "summarize_latents", "train_mil", "localize"),
    *("summarize_cv", "report"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which everything is finished."""
    folder = tmp_path_factory.mktemp("finished")
    torch.manual_seed(0)
    torch.save(timm.create_model("resnet10t", num_classes=0).state_dict(), folder / "weights.pth")
    start(folder, "pipeline")
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of it somewhere else, which may be changed."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def start(folder, task, *overrides):
    places = [f"paths.data={folder / 'data'}", f"paths.runs={folder / 'runs'}"]
    typed = [*SETTINGS, f"backbone.checkpoint={folder / 'weights.pth'}", *places, *overrides]
    cfg = config.with_task(composed(tuple(typed)), task)
    typed.append(f"task={task}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "hydra_overrides", lambda: typed)  # the pipeline asks what was typed
        return execute(cfg, typed)


@functools.cache
def composed(typed):
    config.register_resolvers()
    return config.resolve(config.compose(typed))


def manifests(folder):
    paths = folder.glob("runs/**/manifest.json")
    return {
        next(part for part in path.parts if part in (*TASKS, "pipeline")): json.loads(path.read_text())
        for path in paths
    }


def made_again(before, after):
    return {task for task in TASKS if before[task]["started"] != after[task]["started"]}


def change_features(folder):
    path = features_of(folder, "train")
    with h5py.File(path, "a") as file:
        file["features"][0] = file["features"][0] * 1.5


def change_labels(folder):
    path = dataset(folder) / "dataset.csv"
    item_id = split(folder).train[0]
    (label,) = (slide.label for slide in read_items(path) if slide.item_id == item_id)
    other = {"normal": "tumor", "tumor": "normal"}[label]
    path.write_text(path.read_text().replace(f",{item_id},{label}", f",{item_id},{other}"))


def change_split(folder):
    """Swaps a train and a test slide of one class."""
    (path,) = dataset(folder).glob("splits_*/splits_0.csv")
    label_of = {slide.item_id: slide.label for slide in read_items(dataset(folder) / "dataset.csv")}
    one = split(folder).train[0]
    other = next(item_id for item_id in split(folder).test if label_of[item_id] == label_of[one])
    swap = {one: other, other: one}
    cells = [line.split(",") for line in path.read_text().splitlines()]
    path.write_text("\n".join(",".join(swap.get(cell, cell) for cell in line) for line in cells) + "\n")


def change_outlines(folder):
    path = next(
        dataset(folder) / "annotations" / f"{name}.xml" for name in split(folder).test if is_outlined(folder, name)
    )
    path.write_text(path.read_text().replace('X="', 'X="1'))


def change_weights(folder):
    weights = torch.load(folder / "weights.pth", weights_only=True)
    torch.save(
        {name: value * 1.01 if value.is_floating_point() else value for name, value in weights.items()},
        folder / "weights.pth",
    )


def change_export(folder):
    (path,) = folder.glob("runs/**/train_sae/export/loupe_state.safetensors")
    save_file({name: value * 1.5 for name, value in load_file(path).items()}, path)


def remove_latents(folder):
    next(folder.glob("runs/**/encode/latents/all/shard_*.safetensors")).unlink()


def change_ranking(folder):
    (path,) = folder.glob("runs/**/select_neurons/analysis/neurons.csv")
    header, first, second, *rest = path.read_text().splitlines()
    path.write_text("\n".join([header, second, first, *rest]) + "\n")


def dataset(folder):
    return folder / "data" / "synthetic_slides_small"


def split(folder):
    (path,) = dataset(folder).glob("splits_*")
    return read_split(path, 0)


def features_of(folder, part):
    (path,) = dataset(folder).glob(f"features_*/h5_files/{getattr(split(folder), part)[0]}.h5")
    return path


def is_outlined(folder, item_id):
    return (dataset(folder) / "annotations" / f"{item_id}.xml").is_file()


# What changed: the tasks that refuse to start then, and those that a pipeline makes again. A result that comes out
# as it was leaves what was made from it alone.
CHANGES = [
    (change_features, {"train_sae", *AFTER_SAE}, {"train_sae", *AFTER_SAE}),
    (change_labels, {*AFTER_SAE} - {"evaluate_sae", "encode"}, {*AFTER_SAE} - {"evaluate_sae", "encode"}),
    (change_split, {"train_sae", *AFTER_SAE}, {"train_sae", *AFTER_SAE}),
    (change_outlines, {"localize", "report"}, {"localize", "report"}),
    (change_weights, {"embed", "train_sae", *AFTER_SAE}, {"embed", "train_sae", *AFTER_SAE}),
    (change_export, {"train_sae", *AFTER_SAE}, {"train_sae", "report"}),
    (remove_latents, {*AFTER_SAE} - {"evaluate_sae"}, {"encode", "report"}),
    (change_ranking, {*AFTER_SAE} - {"evaluate_sae", "encode", "summarize_latents"}, {"select_neurons", "report"}),
]


@pytest.mark.parametrize(("change", "refused", "remade"), CHANGES, ids=[change.__name__ for change, _, _ in CHANGES])
def test_a_change_is_refused_by_all_that_depend_on_it_and_a_pipeline_makes_those_again(folder, change, refused, remade):
    change(folder)
    before = manifests(folder)
    told = {}
    for task in TASKS:
        try:
            start(folder, task)
        except StaleRunError as error:
            told[task] = str(error)
    assert set(told) == refused
    assert manifests(folder) == before
    first = next(task for task in TASKS if task in refused)
    for task, message in told.items():
        assert "overwrite=true" in message
        names_first = f"task={first} overwrite=true" in message or f"{first} run" in message
        is_itself = message.startswith("Expected the run")  # made of what has changed, not of another run
        assert names_first or is_itself, (task, message)
    start(folder, "pipeline")
    after = manifests(folder)
    assert made_again(before, after) == remade
    start(folder, "pipeline")
    assert manifests(folder) == after


def test_runs_and_data_that_were_moved_go_on(finished, folder):
    before = manifests(folder)
    assert made_again(manifests(finished), before) == set()
    for task in (*TASKS[:-1],):
        start(folder, task)
    assert manifests(folder) == before


def test_slides_that_were_archived_leave_what_was_made_from_them(folder, caplog):
    before = manifests(folder)
    shutil.move(dataset(folder) / "slides", folder / "archive")
    with caplog.at_level("WARNING"):
        for task in TASKS:
            start(folder, task)
    assert "slides" in caplog.text
    assert "not there any more" in caplog.text
    assert made_again(before, manifests(folder)) <= {"report"}


def test_a_file_repaired_after_it_was_skipped_is_noticed(folder):
    path = features_of(folder, "train")
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    skip = ("dataset.on_bad_file=skip",)
    start(folder, "train_sae", *skip, "overwrite=true")
    path.write_bytes(whole)
    with pytest.raises(StaleRunError, match="activations train"):
        start(folder, "train_sae", *skip)


def test_latents_of_another_sae_are_not_ranked(folder):
    rng = np.random.default_rng(0)
    (features,) = dataset(folder).glob("features_*")
    for path in (features / "h5_files").glob("*.h5"):
        with h5py.File(path, "a") as file:
            file["features"][...] = rng.standard_normal(file["features"].shape).astype(np.float32)
    start(folder, "train_sae", "overwrite=true")
    with pytest.raises(StaleRunError, match=r"encode run .*task=encode overwrite=true"):
        start(folder, "select_neurons", "selection.method=auroc")
    with pytest.raises(StaleRunError, match="encode run"):
        start(folder, "train_mil", "mil.max_epochs=2")
