import numpy as np
import pytest
import torch

from src.data.features import FeatureFolder
from src.data.packing import pack_activations
from src.data.standardize import fit_standardizer


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(2)
    scales, means = np.array([1, 1e-3, 1e4, 0, 3]), np.array([0, 1e3, -1e4, 0.1, 5])
    for name, n in (("a", 40_000), ("b", 1), ("c", 200)):
        features = rng.normal(size=(n, 5)) * scales + means + (name == "c") * (scales > 0)
        torch.save(torch.from_numpy(features.astype(np.float32)), tmp_path / f"{name}.pt")
    return pack_activations(FeatureFolder(tmp_path), ["a", "b", "c"], tmp_path / "cache")


def test_equals_numpy_in_float64_on_the_named_slides(store):
    standardizer = fit_standardizer(store, ["c", "a"])
    rows = np.concatenate([store.rows("a"), store.rows("c")]).astype(np.float64)
    np.testing.assert_allclose(standardizer.mean, rows.mean(axis=0), rtol=1e-6, atol=1e-9)
    varying = [0, 1, 2, 4]
    np.testing.assert_allclose(standardizer.scale[varying], rows.std(axis=0)[varying], rtol=1e-6)
    assert standardizer.scale[3] == 1.0
    assert standardizer.mean.dtype == standardizer.scale.dtype == np.float32
    standardized = standardizer(rows.astype(np.float32))
    np.testing.assert_array_equal(standardized[:, 3], 0)
    np.testing.assert_allclose(standardized[:, [0, 2, 4]].std(axis=0), 1, rtol=1e-4)


def test_one_row_has_scale_one(store):
    standardizer = fit_standardizer(store, ["b"])
    np.testing.assert_array_equal(standardizer.scale, 1)
    np.testing.assert_array_equal(standardizer.mean, store.rows("b")[0])


def test_no_rows(store):
    with pytest.raises(ValueError, match="Expected rows to standardise on, got none"):
        fit_standardizer(store, [])
