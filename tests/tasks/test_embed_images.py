"""task=embed on a folder of images, and what is made of its store."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from src import config
from src.data.embedding.embedder import Embedder
from src.data.fold import open_fold
from src.data.readers.tensor_folder import TensorFolder
from src.data.streamed_fold import StreamedFold
from src.runs.execution import execute, open_rundir
from src.stores.activations.store import ActivationStore
from src.tasks import train_sae
from src.tasks.streaming import open_backbone

CLASSES, N_EACH, SIDE = ("blue", "red"), 12, 32
VIT = (
    "backbone=random_vit_tiny",
    f"backbone.image_size={SIDE}",
    "+backbone.model_args={depth: 3}",
    "backbone.tokens=patch",
)


@pytest.fixture
def folder(tmp_path):
    """Twelve images of each of two classes, 40 x 36."""
    generator = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(N_EACH):
            image = generator.integers(0, 60, (36, 40, 3), dtype=np.uint8)
            image[..., 2 - 2 * label] += 150
            Image.fromarray(image).save(tmp_path / "images" / name / f"{name[0]}{number:02d}.png")
    return tmp_path


def typed(folder, task, *overrides):
    config.register_resolvers()
    places = [f"dataset.dir={folder / 'images'}", f"paths.data={folder / 'data'}", f"paths.runs={folder / 'runs'}"]
    small = ["name=small", "dataset.positive_class=red", "splits.n_folds=2", "trainer=cpu", "embed.batch_size=5"]
    return ["exp=images", *VIT, *places, *small, f"task={task}", *overrides]


def run(folder, *tasks, overrides=()):
    for task in tasks:
        overridden = typed(folder, task, *overrides)
        results = execute(config.compose(overridden), overridden)
    return results


def resolve(folder, task, *overrides):
    return config.resolve(config.compose(typed(folder, task, *overrides)))


def expected(folder, layer, item_id):
    """The tokens of one image, computed by itself."""
    backbone = open_backbone(resolve(folder, "embed", f"backbone.layer={layer}"))
    name = CLASSES["br".index(item_id.rpartition("__")[2][0])]
    (path,) = (folder / "images" / name).glob(f"{item_id.rpartition('__')[2]}.png")
    image = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None]
    with torch.inference_mode():
        ((_, values),) = backbone.activations(backbone.normalize(backbone.resize(image))).items()
    return values[0].numpy()


def store_of(folder, layer):
    return ActivationStore(resolve(folder, "embed", f"backbone.layer={layer}").dataset.features_dir)


def test_images_become_tokens_of_one_store(folder, caplog):
    with caplog.at_level(logging.INFO):
        results = run(folder, "metadata", "embed", overrides=["backbone.layer=1"])
    assert results == {"n_items": 24, "n_rows": 24 * 4, "d_in": 192}
    assert "The model waited for pictures" in caplog.text
    store = store_of(folder, 1)
    assert (len(store.item_ids), store.n_rows, store.spec.grid, store.spec.tokens) == (24, 96, "2x2", "patch")
    for item_id in (store.item_ids[0], store.item_ids[-1]):
        np.testing.assert_allclose(store.rows(item_id), expected(folder, 1, item_id), rtol=1e-4, atol=1e-5)
    assert len(list(store.path.iterdir())) == 3


@pytest.mark.slow
def test_several_layers_in_one_pass_lie_where_each_would_alone(folder):
    run(folder, "metadata", "embed", overrides=["backbone.layer=[0,-1]"])
    for layer in (0, -1):
        store = store_of(folder, layer)
        item_id = store.item_ids[3]
        np.testing.assert_allclose(store.rows(item_id), expected(folder, layer, item_id), rtol=1e-4, atol=1e-5)
    assert open_fold(resolve(folder, "train_sae", "backbone.layer=0", "fold=all")).spec.layer == "0"
    before = {path: path.stat().st_mtime_ns for path in store_of(folder, 0).path.iterdir()}
    run(folder, "embed", overrides=["backbone.layer=0"])
    assert {path: path.stat().st_mtime_ns for path in store_of(folder, 0).path.iterdir()} == before


@pytest.mark.slow
def test_parts_have_runs_of_their_own_and_are_taken_over(folder):
    run(folder, "metadata")
    for number in (1, 2, 3):
        results = run(folder, "embed", overrides=["backbone.layer=0", f"embed.part={number}/3"])
        assert results["n_items"] == 8
        rundir = open_rundir(resolve(folder, "embed", "backbone.layer=0", f"embed.part={number}/3"), [])
        assert rundir.path.name == f"part_{number}_of_3"
    run(folder, "embed", overrides=["backbone.layer=0"])
    store = store_of(folder, 0)
    assert len(store.item_ids) == 24
    assert sorted(path.name for path in store.path.iterdir()) == [
        *(f"index_{number:05d}.csv" for number in range(3)),
        *(f"shard_{number:05d}.npy" for number in range(3)),
        "specs.json",
    ]


@pytest.mark.slow
def test_a_changed_image_makes_the_run_stale_and_alone_is_embedded_again(folder, monkeypatch):
    run(folder, "metadata", "embed", overrides=["backbone.layer=0"])
    first = store_of(folder, 0)
    path = folder / "images" / "red" / "r03.png"
    Image.fromarray(np.full((36, 40, 3), 9, np.uint8)).save(path)
    with pytest.raises(ValueError, match="images all"):
        run(folder, "embed", overrides=["backbone.layer=0"])
    overridden = typed(folder, "embed", "backbone.layer=0")
    execute(config.compose(overridden), overridden, replace=True)
    second = store_of(folder, 0)
    changed = [item for item in second.item_ids if second.digest(item) != first.digest(item)]
    assert [item.rpartition("__")[2] for item in changed] == ["r03"]
    assert len(list(second.path.glob("shard_*"))) == 2


def test_a_bad_image_is_named_and_left_out_when_asked(folder, caplog):
    (folder / "images" / "blue" / "b04.png").write_bytes(b"no image")
    run(folder, "metadata")
    with pytest.raises(ValueError, match=r"b04\.png"):
        run(folder, "embed", overrides=["backbone.layer=0"])
    skip = ["backbone.layer=0", "dataset.on_bad_file=skip"]
    assert run(folder, "embed", overrides=skip)["n_items"] == 23
    assert "b04.png" in caplog.text
    run(folder, "splits", overrides=skip)
    fold = open_fold(resolve(folder, "train_sae", *skip))
    assert not any("b04" in item_id for item_id in fold.split.item_ids("train+val+test"))


def test_another_layer_is_refused_with_both_specs_printed(folder):
    run(folder, "metadata", "embed", "splits", overrides=["backbone.layer=0"])
    other = ["backbone.layer=1", f"dataset.features_dir={store_of(folder, 0).path}"]
    with pytest.raises(ValueError, match=r"(?s)differ in layer.*layer [01].*layer [01]"):
        open_fold(resolve(folder, "train_sae", *other))


def test_activations_of_images_decoded_with_another_window_are_refused(folder):
    run(folder, "metadata", "embed", "splits", overrides=["backbone.layer=0"])
    with pytest.raises(ValueError, match=r"differ in transform"):
        open_fold(resolve(folder, "train_sae", "backbone.layer=0", "dataset.window=[100,50]"))


@pytest.mark.slow
def test_a_streamed_sae_reads_what_embed_writes(folder):
    layer = "backbone.layer=1"
    run(folder, "metadata", "embed", "splits", overrides=[layer])
    packed = open_fold(resolve(folder, "train_sae", layer))
    streamed = train_sae.open_train_fold(resolve(folder, "train_sae", layer, "train.residency=stream"))
    assert isinstance(streamed, StreamedFold)
    assert (streamed.spec, streamed.split) == (packed.spec, packed.split)
    rows, others = streamed.rows("train"), packed.rows("train")
    assert (rows.n_rows, rows.slide_starts.tolist()) == (others.n_rows, others.slide_starts.tolist())
    np.testing.assert_allclose(rows.read(3, 21), others.read(3, 21), rtol=1e-4, atol=1e-5)
    results = run(
        folder,
        "train_sae",
        overrides=[layer, "train.residency=stream", "train.epochs=2", "sae.k=4", "train.batch_size=16"],
    )
    assert results["n_train_rows"] == rows.n_rows


def test_tokens_are_exported_as_tensors_and_read_back(folder):
    layer = "backbone.layer=1"
    run(folder, "metadata", "embed", "splits", "export_activations", overrides=[layer])
    rundir = open_rundir(resolve(folder, "export_activations", layer), [])
    fold = open_fold(resolve(folder, "train_sae", layer))
    stem = rundir.path / "tensors" / "random_vit_tiny_1_test"
    ids, labels = ({"test": f"{stem}_{name}.json"} for name in ("ids", "labels"))
    tensors = TensorFolder({"test": f"{stem}.pt"}, ids, labels)
    assert {item.item_id: item.label for item in tensors.items} == {
        item_id: fold.items[item_id].label for item_id in fold.split.test
    }
    for item_id in fold.split.test:
        rows = np.concatenate(list(tensors.open(item_id).pieces()))
        np.testing.assert_array_equal(rows, fold.store.rows(item_id))


@pytest.mark.slow
def test_an_sae_that_counts_images_takes_its_tokens_from_the_store(folder):
    images = ["backbone.layer=1", "train.batch_unit=images", "sae=patchsae", "train=patchsae", "train.batch_size=4"]
    run(folder, "metadata", "embed", "splits", overrides=images)
    assert run(folder, "train_sae", overrides=[*images, "train.epochs=2"])["n_steps"] > 2


@pytest.mark.slow
def test_saes_on_several_layers_of_one_stream_equal_those_alone(folder, monkeypatch):
    stream = ["train.residency=stream", "train.epochs=3", "sae.k=4", "train.batch_size=16", "train.n_validations=1"]
    run(folder, "metadata", "splits")
    files = {}
    for layer in (0, 2):
        alone = [*stream, f"backbone.layer={layer}", f"paths.runs={folder / 'alone'}"]
        run(folder, "train_sae", overrides=alone)
        place = open_rundir(resolve(folder, "train_sae", *alone), []).path
        files |= {path.relative_to(folder / "alone"): path for path in place.rglob("*.safetensors")}
        files |= {place.relative_to(folder / "alone") / name: place / name for name in ("results.json", "metrics.csv")}
    overrides = typed(folder, "train_sae_sweep", *stream, "sweep.grid=['backbone.layer=0,2']")
    monkeypatch.setattr(config, "hydra_overrides", lambda: overrides)
    passes = []
    embed = Embedder._forward
    monkeypatch.setattr(Embedder, "_forward", lambda self, *args: passes.append(self) or embed(self, *args))
    execute(config.compose(overrides), overrides)
    assert len(set(map(id, passes))) == 1  # one backbone
    assert len(files) == 8  # weights, how often neurons fire, results and metrics of each
    for path, expected in files.items():
        assert (folder / "runs" / path).read_bytes() == expected.read_bytes(), path


def test_several_layers_are_refused_where_one_sae_is_trained(folder):
    run(folder, "metadata", "splits")
    with pytest.raises(ValueError, match=r"Expected one backbone\.layer .*train_sae_sweep"):
        run(folder, "train_sae", overrides=["backbone.layer=[0,2]", "train.residency=stream"])
