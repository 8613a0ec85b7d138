"""A folder of real slides, cut and embedded by the command, without csv or splits."""

import h5py
import numpy as np
import pytest
import torch

from src import config
from src.data.fold import open_fold
from src.runs.execution import execute

pytestmark = [pytest.mark.slow, pytest.mark.realdata]
SLIDE = "cmu-1-small-region"


def typed(folder, data_dir, task, *overrides):
    config.register_resolvers()
    places = [f"dataset.dir={data_dir / 'slides'}", f"paths.data={folder / 'data'}", f"paths.runs={folder / 'runs'}"]
    small = ["backbone=random_vit_tiny", "tile.patch_size=128", "name=cmu", "fold=all", "trainer=cpu"]
    return ["exp=slides", *places, *small, f"task={task}", *overrides]


@pytest.mark.parametrize("tiling", ["default", "clam_bwh_biopsy"])
def test_a_real_slide_is_cut_embedded_and_read_back(data_dir, tmp_path, tiling):
    for task in ("tile", "metadata", "embed"):
        overrides = typed(tmp_path, data_dir, task, f"tile={tiling}")
        results = execute(config.compose(overrides), overrides)
    cfg = config.resolve(config.compose(typed(tmp_path, data_dir, "encode", f"tile={tiling}")))
    assert results["d_in"] == 192

    # As a program does that knows CLAM's published layout and nothing else.
    patches, features = cfg.dataset.patches_dir, cfg.dataset.features_dir
    with h5py.File(f"{patches}/patches/{SLIDE}.h5") as file:
        coords = file["coords"][:]
        stated = dict(file["coords"].attrs)
    assert (stated["patch_size"], stated["patch_level"], stated["name"]) == (128, 0, SLIDE)
    with h5py.File(f"{features}/h5_files/{SLIDE}.h5") as file:
        assert file["features"].shape == (len(coords), 192)
        np.testing.assert_array_equal(file["coords"][:], coords)
        rows = file["features"][:]
    assert torch.equal(torch.load(f"{features}/pt_files/{SLIDE}.pt", weights_only=True), torch.from_numpy(rows))
    assert results["n_rows"] == len(coords) > 100
    assert {path.name for path in (tmp_path / "data").rglob("*.jpg")} == {f"{SLIDE}.jpg"}

    # As ours does.
    fold = open_fold(cfg)
    np.testing.assert_array_equal(fold.store.rows(SLIDE), rows)
    np.testing.assert_array_equal(fold.store.coords(SLIDE), coords)
    assert fold.spec.patch_size == "128"
