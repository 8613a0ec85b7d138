import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from src import config
from src.data.fold import open_fold
from src.data.readers.features import FeatureFolder
from src.data.slides.slide_files import open_slide_images
from src.data.slides.slide_writer import write_slide
from src.runs.rundir import RunDir
from src.tasks import embed, tile
from tests.data.readers.opened import look, read

config.register_resolvers()
SETTINGS = (
    "dataset=synthetic_slides",
    "backbone=random_resnet10t",
    "tile.patch_size=64",
    "backbone.image_size=64",
    "dataset.generator.n_slides=2",
    "dataset.generator.n_cases=2",
    "dataset.generator.size=384",
    "trainer=cpu",
)


def run(task, folder, *overrides):
    typed = [*SETTINGS, f"paths.data={folder / 'data'}", f"task={task.__name__.rpartition('.')[2]}", *overrides]
    rundir = RunDir(folder / "runs" / task.__name__)
    rundir.path.mkdir(parents=True, exist_ok=True)
    cfg = config.resolve(config.compose(typed))
    return task.run(cfg, rundir), rundir, cfg


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    tiled, tile_run, _ = run(tile, folder)
    results, embed_run, cfg = run(embed, folder)
    return folder, cfg, tiled, results, tile_run, embed_run


def test_patches_and_their_activations_are_in_clams_layout_and_order(embedded):
    folder, cfg, tiled, results, _, _ = embedded
    assert tiled["n_slides"] == results["n_items"] == 2
    assert tiled["n_patches"] == results["n_rows"] > 4
    root = folder / "data" / "synthetic_slides"
    processed = pd.read_csv(root / "patches_64_level0" / "process_list_autogen.csv")
    assert processed["slide_id"].tolist() == ["case_1_1.tif", "case_2_1.tif"]
    assert processed["n_patches"].sum() == tiled["n_patches"]
    backbone = config.instantiate(cfg.backbone)
    for slide_id in ("case_1_1", "case_2_1"):
        assert (root / "patches_64_level0" / "masks" / f"{slide_id}.jpg").is_file()
        with h5py.File(root / "patches_64_level0" / "patches" / f"{slide_id}.h5") as file:
            coords, attributes = file["coords"][()], dict(file["coords"].attrs)
        assert coords.dtype == np.int64
        assert attributes["name"] == slide_id
        assert (attributes["patch_size"], attributes["patch_level"], attributes["patch_size_level0"]) == (64, 0, 64)
        bag, features = (find(FeatureFolder(cfg.dataset.features_dir), slide_id) for find in (look, read))
        assert bag.patch_size_level0 == 64
        np.testing.assert_array_equal(bag.coords, coords)
        with open_slide_images(root / "slides" / f"{slide_id}.tif") as images:
            patches = np.stack([images.patch(x, y, 64, 64) for x, y in coords])
        images = backbone.normalize(backbone.resize(torch.from_numpy(patches).permute(0, 3, 1, 2)))
        expected = backbone.activations(images)["2"][:, 0]
        np.testing.assert_allclose(features, expected.numpy(), rtol=1e-4, atol=1e-5)
        tensor = torch.load(f"{cfg.dataset.features_dir}/pt_files/{slide_id}.pt", weights_only=True)
        np.testing.assert_array_equal(tensor.numpy(), features)


def test_pages_say_what_was_done(embedded):
    *_, tile_run, embed_run = embedded
    assert "2 slides" in tile_run.page_path.read_text()
    assert "random weights" in embed_run.page_path.read_text()


def test_finished_slides_are_not_made_again(embedded):
    folder, cfg, *_ = embedded
    files = list((folder / "data").rglob("*.h5"))
    before = {path: path.stat().st_mtime_ns for path in files}
    lost = folder / "data" / "synthetic_slides" / cfg.dataset.features_dir.rpartition("/")[2] / "h5_files/case_2_1.h5"
    lost.unlink()
    assert run(tile, folder)[0]["n_slides"] == 2
    assert run(embed, folder)[0]["n_items"] == 2
    assert lost.is_file()
    assert {path: path.stat().st_mtime_ns for path in files if path != lost} == {
        path: time for path, time in before.items() if path != lost
    }


def test_what_killed_writers_left_is_no_slide_and_no_patch_file(embedded):
    folder, *_ = embedded
    slides = next(folder.glob("data/*/slides"))
    leftovers = [slides / ".s1.x1.partial.tif", slides / ".hidden.svs"]
    patches = next(folder.glob("data/*/patches_*/patches"))
    for path in (*leftovers, patches / ".s1.x1.h5"):
        path.write_bytes(b"half")
    assert run(tile, folder)[0]["n_slides"] == 2
    assert run(embed, folder)[0]["n_items"] == 2
    for path in (*leftovers, patches / ".s1.x1.h5"):
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("override", ["backbone.seed=1", "backbone.layer=1", "backbone.normalize_each=false"])
def test_features_of_another_backbone_are_kept(embedded, override):
    folder, *_ = embedded
    with pytest.raises(
        ValueError, match=r"(?s)there: \[.*weights random, seed 0, layer 2, tokens mean.*overwrite=true"
    ):
        run(embed, folder, override, f"dataset.features_dir={features_dir(folder)}")


def test_features_of_another_layer_are_not_read(embedded, tmp_path):
    folder, *_ = embedded
    root = folder / "data" / "synthetic_slides"
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "splits_0.csv").write_text("train,val,test\ncase_1_1,,case_2_1\n")
    typed = [
        *SETTINGS,
        f"paths.data={folder / 'data'}",
        f"paths.cache={tmp_path}",
        f"dataset.splits_dir={tmp_path}/splits",
    ]
    another = "backbone.layer=1"
    with pytest.raises(ValueError, match=r"needs dataset.features_dir: found nothing at .*_layer1_.*task=embed"):
        config.check_start(config.resolve(config.compose([*typed, another, "task=train_sae"])))
    cfg = config.resolve(config.compose([*typed, another, f"dataset.features_dir={features_dir(folder)}"]))
    with pytest.raises(ValueError, match=r"(?s)two that differ in layer:.*layer 1, .*layer 2, ") as caught:
        open_fold(cfg)
    assert str(root) in str(caught.value)


def features_dir(folder):
    return next((folder / "data" / "synthetic_slides").glob("features_*"))


def test_files_of_another_program_are_kept(embedded, tmp_path):
    shutil.copytree(embedded[0] / "data", tmp_path / "data")
    with h5py.File(features_dir(tmp_path) / "h5_files" / "case_1_1.h5", "a") as file:
        del file.attrs["spec"]
    with pytest.raises(ValueError, match=r"there: \[.*nothing is known\]"):
        run(embed, tmp_path)


@pytest.mark.parametrize("override", ["tile.min_tissue=0.9", "tile.step=32"])
def test_patches_of_other_settings_are_kept(embedded, override):
    folder, _, *_ = embedded
    patches = f"dataset.patches_dir={folder}/data/synthetic_slides/patches_64_level0"
    key, _, value = override.removeprefix("tile.").partition("=")
    with pytest.raises(ValueError, match=rf'"{key}": {value}.*got.*overwrite=true'):
        run(tile, folder, override, patches)


@pytest.mark.slow
def test_overwrite_cuts_and_embeds_again(embedded, tmp_path):
    folder, *_ = embedded
    shutil.copytree(folder / "data", tmp_path / "data")
    root = tmp_path / "data" / "synthetic_slides"
    places = (f"dataset.patches_dir={root / 'patches_64_level0'}", f"dataset.features_dir={features_dir(tmp_path)}")
    overlapping = ("tile.step=32", "overwrite=true", *places)
    n_patches = run(tile, tmp_path, *overlapping)[0]["n_patches"]
    assert n_patches > 2 * embedded[2]["n_patches"]
    with pytest.raises(ValueError, match="overwrite=true"):
        run(embed, tmp_path, "tile.step=32", "backbone.layer=1", *places)
    results, _, cfg = run(embed, tmp_path, *overlapping, "backbone.layer=1")
    assert results == {"n_items": 2, "n_rows": n_patches, "d_in": 64}
    bags = [look(FeatureFolder(cfg.dataset.features_dir), slide_id) for slide_id in ("case_1_1", "case_2_1")]
    assert sum(bag.n_rows for bag in bags) == n_patches


def test_slide_without_tissue_is_an_error_that_names_it_or_is_listed(tmp_path, caplog):
    slides = tmp_path / "blank"
    write_slide(slides / "blank.tif", np.full((512, 512, 3), 240, np.uint8), 0.5)
    overrides = ("dataset.generator=null", f"dataset.slides_dir={slides}")
    with pytest.raises(ValueError, match=r"blank\.tif: no patch with enough tissue"):
        run(tile, tmp_path, *overrides)
    stained = np.full((512, 512, 3), 240, np.uint8)
    stained[128:384, 128:384] = (200, 120, 170)
    write_slide(slides / "stained.tif", stained, 0.5)
    results, _, cfg = run(tile, tmp_path, *overrides, "dataset.on_bad_file=skip")
    assert results == {"n_slides": 1, "n_patches": 16, "n_failed": 1}
    assert "Skipped slide blank" in caplog.text
    processed = pd.read_csv(f"{cfg.dataset.patches_dir}/process_list_autogen.csv").set_index("slide_id")
    assert processed["status"].to_dict() == {"blank.tif": "failed_seg", "stained.tif": "processed"}
