"""task=tile: what it writes, and what it does about slides that cannot be cut."""

import csv
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from src import config
from src.data.slides.patching import read_patch_file, read_scale
from src.data.slides.slide_files import open_slide
from src.data.slides.slide_writer import write_slide
from src.runs.rundir import RunDir
from src.tasks import tile

config.register_resolvers()
CLAM = ("tile=clam", "tile.a_t=0.05", "tile.a_h=0.05", "tile.line_thickness=8")
PROCESS_LIST = [
    *("slide_id", "process", "status", "seg_level", "sthresh", "mthresh", "close", "use_otsu", "keep_ids"),
    *("exclude_ids", "a_t", "a_h", "max_n_holes", "vis_level", "line_thickness", "use_padding", "contour_fn"),
]


def stained(width=640, height=512):
    image = np.full((height, width, 3), 240, np.uint8)
    image[128:384, 128:512] = (200, 120, 170)
    image[::8, ::8] -= 20  # texture
    return image


def run(folder, *overrides):
    """Runs the task on the slides of `folder/slides`."""
    typed = ["dataset=camelyon16", f"dataset.dir={folder}", "task=tile", "tile.patch_size=64", "trainer=cpu"]
    cfg = config.resolve(config.compose([*typed, f"paths.data={folder}", *overrides]))
    rundir = RunDir(folder / "runs" / "tile")
    rundir.path.mkdir(parents=True, exist_ok=True)
    return tile.run(cfg, rundir), cfg.dataset.patches_dir


def listed(patches_dir):
    with open(f"{patches_dir}/process_list_autogen.csv", newline="") as file:
        return {row["slide_id"]: row for row in csv.DictReader(file)}


def read_as_clam(patches_dir, slides_dir, slide_file):
    """Reads patches as CLAM's feature extraction does: by the attributes of `coords` alone.

    The id is the file name up to the suffix, and patches are `patch_size` pixels of `patch_level`.
    """
    slide_id = slide_file.split(".tif")[0].split(".svs")[0]
    patches = []
    with h5py.File(f"{patches_dir}/patches/{slide_id}.h5", "r") as file, open_slide(slides_dir / slide_file) as slide:
        coords = file["coords"]
        assert set(coords.attrs) >= {
            *("patch_size", "patch_level", "downsample", "downsampled_level_dim", "level_dim", "name", "save_path")
        }
        level, size = coords.attrs["patch_level"], coords.attrs["patch_size"]
        assert coords.attrs["name"] == slide_id
        assert tuple(coords.attrs["level_dim"]) == slide.level_dimensions[level]
        for index in range(len(coords)):
            region = slide.read_region(coords[index], level, (size, size)).convert("RGB")
            patches.append(np.asarray(region))
    return patches


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_slide(folder / "slides" / "stained.tif", stained(), 0.5)
    write_slide(folder / "slides" / "other.tif", stained(704), 0.5)
    return folder


@pytest.mark.parametrize("tiling", [(), CLAM], ids=["default", "clam"])
def test_everything_is_in_clams_layout(slides, tmp_path, tiling):
    shutil.copytree(slides, tmp_path, dirs_exist_ok=True)
    results, patches_dir = run(tmp_path, *tiling, "tile.patch_level=1", "tile.patch_size=32")
    assert results["n_slides"] == 2
    rows = listed(patches_dir)
    assert list(rows) == ["other.tif", "stained.tif"]
    assert list(rows["stained.tif"]) == [*PROCESS_LIST, "n_patches", "reason"]
    for slide_id in ("stained", "other"):
        row = rows[f"{slide_id}.tif"]
        coords, size_level0, side = read_patch_file(tmp_path / patches_dir / "patches" / f"{slide_id}.h5")
        assert (row["process"], row["status"], row["reason"]) == ("0", "processed", "")
        assert int(row["n_patches"]) == len(coords) > 10
        assert (size_level0, side) == (64, 32)
        patches = read_as_clam(patches_dir, tmp_path / "slides", f"{slide_id}.tif")
        assert len(patches) == len(coords)
        assert all(patch.shape == (32, 32, 3) for patch in patches)
        shares = [((patch.max(axis=2) - patch.min(axis=2)) > 40).mean() for patch in patches]
        assert min(shares) >= (0.5 if not tiling else 0.05)
        mask, stitch = (
            np.asarray(Image.open(f"{patches_dir}/{name}/{slide_id}.jpg")) for name in ("masks", "stitches")
        )
        assert mask.shape == stitch.shape
        # The share of the slide that the patches cover, up to the black of JPEG.
        covered = len(coords) * 64 * 64 / (640 * 512 if slide_id == "stained" else 704 * 512)
        assert (stitch.max(axis=2) > 60).mean() == pytest.approx(covered, abs=0.1)
        green = mask[..., 1].astype(int) - mask[..., 0] > 80
        assert 0.002 < green.mean() < 0.1  # the outline


def test_clams_columns_say_how_a_slide_was_cut(slides, tmp_path):
    shutil.copytree(slides, tmp_path, dirs_exist_ok=True)
    _, patches_dir = run(tmp_path, *CLAM)
    assert patches_dir.endswith("patches_64_level0_clam")
    row = listed(patches_dir)["stained.tif"]
    assert (row["seg_level"], row["sthresh"], row["use_otsu"], row["keep_ids"]) == ("1", "8", "False", "none")
    assert (row["a_t"], row["contour_fn"], row["use_padding"]) == ("0.05", "four_pt", "True")
    # CLAM and pandas read it with types of their own.
    types = {"seg_level": np.int8, "sthresh": np.uint8, "a_t": np.float32, "use_otsu": bool}
    pd.read_csv(f"{patches_dir}/process_list_autogen.csv").astype(types)


@pytest.mark.parametrize("tiling", [(), CLAM], ids=["default", "clam"])
def test_steps_below_the_edge_overlap(slides, tmp_path, tiling):
    shutil.copytree(slides, tmp_path, dirs_exist_ok=True)
    _, patches_dir = run(tmp_path, *tiling, "tile.step=16", "dataset.on_bad_file=skip")
    assert "_step16" in patches_dir
    coords, size_level0, _ = read_patch_file(tmp_path / patches_dir / "patches" / "stained.h5")
    assert size_level0 == 64
    assert set(np.diff(np.unique(coords[:, 0]))) == {16}


def bad_slides(folder):
    write_slide(folder / "slides" / "blank.tif", np.full((512, 512, 3), 240, np.uint8), 0.5)
    write_slide(folder / "slides" / "tiny.tif", np.full((300, 50, 3), (200, 120, 170), np.uint8), 0.5)
    (folder / "slides" / "text.svs").write_text("no slide")
    damaged = bytearray((folder / "slides" / "stained.tif").read_bytes())
    damaged[2_000:-4_000] = bytes(len(damaged) - 6_000)  # opens, and cannot be decoded
    (folder / "slides" / "damaged.tif").write_bytes(damaged)


def test_slides_that_cannot_be_cut_are_listed_and_the_rest_go_on(slides, tmp_path, caplog):
    shutil.copytree(slides, tmp_path, dirs_exist_ok=True)
    bad_slides(tmp_path)
    results, patches_dir = run(tmp_path, "dataset.on_bad_file=skip")
    assert (results["n_slides"], results["n_failed"]) == (2, 4)
    rows = listed(patches_dir)
    assert {name: row["status"] for name, row in rows.items()} == {
        **dict.fromkeys(("blank.tif", "damaged.tif", "text.svs", "tiny.tif"), "failed_seg"),
        **dict.fromkeys(("other.tif", "stained.tif"), "processed"),
    }
    assert rows["blank.tif"]["reason"] == "no patch with enough tissue (tile.min_tissue=0.5)"
    assert "at least one patch, 64 level-0 pixels, got 50 x 300" in rows["tiny.tif"]["reason"]
    assert "a slide that OpenSlide reads" in rows["text.svs"]["reason"]
    assert "a slide that OpenSlide reads" in rows["damaged.tif"]["reason"]
    assert "Skipped slide text" in caplog.text


def test_an_error_tells_them_after_all_others_were_cut(slides, tmp_path):
    shutil.copytree(slides, tmp_path, dirs_exist_ok=True)
    bad_slides(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"(?s)none of 4, listed in .*csv: blank\.tif: no patch.*; damaged\.tif: .*; text\.svs: .*; tiny\.tif",
    ) as caught:
        run(tmp_path)
    assert "dataset.on_bad_file=skip" in str(caught.value)
    cut = tmp_path / "patches_64_level0" / "patches"
    assert sorted(path.stem for path in cut.iterdir()) == ["other", "stained"]
    # What was cut is not cut again.
    before = {path: path.stat().st_mtime_ns for path in cut.iterdir()}
    for name in ("blank.tif", "damaged.tif", "text.svs", "tiny.tif"):
        (tmp_path / "slides" / name).unlink()
    assert run(tmp_path)[0]["n_slides"] == 2
    assert {path: path.stat().st_mtime_ns for path in cut.iterdir()} == before


def test_mpp_is_asked_of_slides_that_state_it(slides, tmp_path):
    import tifffile

    shutil.copytree(slides, tmp_path, dirs_exist_ok=True)
    tifffile.imwrite(tmp_path / "slides" / "silent.tif", stained(), photometric="rgb", tile=(256, 256))
    results, patches_dir = run(tmp_path, "tile.mpp=1.0", "dataset.on_bad_file=skip")
    assert results["n_failed"] == 1
    assert "state its resolution" in listed(patches_dir)["silent.tif"]["reason"]
    path = tmp_path / "patches_64_1.0mpp" / "patches" / "stained.h5"
    assert read_patch_file(path)[1:] == (128, 64)
    assert read_scale(path) == "1"
    assert all(patch.shape == (64, 64, 3) for patch in read_as_clam(patches_dir, tmp_path / "slides", "stained.tif"))


def test_a_slide_that_gives_none_any_more_leaves_no_patches(slides, tmp_path):
    shutil.copytree(slides, tmp_path, dirs_exist_ok=True)
    run(tmp_path)
    write_slide(tmp_path / "slides" / "stained.tif", np.full((512, 512, 3), 240, np.uint8), 0.5)
    _, patches_dir = run(tmp_path, "overwrite=true", "dataset.on_bad_file=skip")
    assert listed(patches_dir)["stained.tif"]["status"] == "failed_seg"
    assert not (tmp_path / "patches_64_level0" / "patches" / "stained.h5").exists()


def test_a_list_of_slides_cut_before_says_what_it_said(slides, tmp_path):
    shutil.copytree(slides, tmp_path, dirs_exist_ok=True)
    _, patches_dir = run(tmp_path, *CLAM)
    before = listed(patches_dir)
    (tmp_path / patches_dir / "process_list_autogen.csv").unlink()
    run(tmp_path, *CLAM)
    assert listed(patches_dir) == before


def test_slides_still_to_come_are_listed_as_such(tmp_path):
    from src.data.slides.process_list import SlideEntry, write_process_list

    write_process_list(tmp_path, ["a.svs", "b.svs"], {"a.svs": SlideEntry(3, "", {"seg_level": 2})})
    rows = listed(tmp_path)
    assert [(row["process"], row["status"], row["seg_level"]) for row in rows.values()] == [
        ("0", "processed", "2"),
        ("1", "tbp", ""),
    ]


def test_what_another_program_cut_is_left_alone(slides, tmp_path):
    shutil.copytree(slides, tmp_path, dirs_exist_ok=True)
    _, patches_dir = run(tmp_path)
    for path in (tmp_path / "patches_64_level0" / "patches").iterdir():
        with h5py.File(path, "a") as file:
            del file.attrs["settings"]
    before = (tmp_path / patches_dir / "process_list_autogen.csv").read_bytes()
    cfg = config.resolve(
        config.compose(["dataset=camelyon16", f"dataset.dir={tmp_path}", "task=tile", "tile.patch_size=64"])
    )
    assert tile.missing_inputs(cfg)[0].startswith("another program cut the slides")
    assert tile.missing_inputs(cfg, ("patches", "slides")) == []
    with pytest.raises(ValueError, match=r"no patches of another program in .*overwrite=true"):
        run(tmp_path)
    assert (tmp_path / patches_dir / "process_list_autogen.csv").read_bytes() == before


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("tiling", "n_patches"), [((), 29), (("tile=clam_bwh_biopsy",), 50)], ids=["default", "clam_bwh_biopsy"]
)
def test_a_real_slide_is_cut_under_both_tilings(data_dir, tmp_path, tiling, n_patches):
    (tmp_path / "slides").mkdir()
    shutil.copy(data_dir / "slides" / "cmu-1-small-region.svs", tmp_path / "slides")
    results, patches_dir = run(tmp_path, *tiling, "tile.patch_size=256")
    assert results == {"n_slides": 1, "n_patches": n_patches, "n_failed": 0}
    patches = read_as_clam(patches_dir, tmp_path / "slides", "cmu-1-small-region.svs")
    assert len(patches) == n_patches
    coloured = np.array([(patch.max(axis=2).astype(int) - patch.min(axis=2) > 25).mean() for patch in patches])
    assert np.median(coloured) > 0.6
    if not tiling:
        assert coloured.min() > 0.35
