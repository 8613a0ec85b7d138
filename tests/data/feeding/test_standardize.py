import numpy as np
import pytest
import torch

from src.data.feeding.standardize import fit_standardizer
from src.data.packing import pack_activations
from src.data.readers.features import FeatureFolder


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(2)
    scales, means = np.array([1, 0.5, 1e4, 0, 3]), np.array([0, 1e3, -1e4, 0.1, 5])
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


def _pack(tmp_path, **slides):
    for name, features in slides.items():
        torch.save(torch.from_numpy(features), tmp_path / f"{name}.pt")
    return pack_activations(FeatureFolder(tmp_path), list(slides), tmp_path / "cache")


def test_nearly_constant_features_do_not_explode_on_held_out_rows(tmp_path):
    rng = np.random.default_rng(0)
    train, test = (rng.normal(size=(n, 8)).astype(np.float32) for n in (500, 100))
    train[:, 3] = 0.05 + 1e-5 * train[:, 3]  # alive on test slides only
    standardizer = fit_standardizer(_pack(tmp_path, train=train, test=test), ["train"])
    assert np.abs(standardizer(test)).max() < 500  # 4 typical deviations over a hundredth; 400,000 of its own
    assert standardizer.scale[3] == pytest.approx(0.01 * np.median(train.std(axis=0)), rel=0.01)
    others = [0, 1, 2, 4, 5, 6, 7]
    np.testing.assert_allclose(standardizer.scale[others], train.std(axis=0)[others], rtol=1e-5)


def test_rounding_is_no_scale(tmp_path):
    """All features are nearly constant: their half-precision values are neighbours, and none is typical."""
    rows = (4.0 + 0.004 * (np.arange(400)[:, None] % 100 == 0) * np.ones(3)).astype(np.float16)
    assert 0 < rows.astype(float).std(axis=0).max() < 0.001
    standardizer = fit_standardizer(_pack(tmp_path, a=rows), ["a"])
    np.testing.assert_allclose(standardizer.scale, 4.0 * np.finfo(np.float16).eps, rtol=1e-3)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["musk1", "elephant"])
def test_real_bags_stay_within_bounds(data_dir, tmp_path, name):
    source = data_dir / "mil" / name
    if not source.is_dir():
        pytest.skip(f"no {name} among the data")
    item_ids = sorted(path.stem for path in (source / "h5_files").glob("*.h5"))
    store = pack_activations(FeatureFolder(source), item_ids, tmp_path / "cache")
    rows = np.concatenate([store.rows(item_id) for item_id in item_ids]).astype(np.float64)
    typical = np.median(rows.std(axis=0)[rows.std(axis=0) > 0])
    for fold in range(5):
        train = [item_id for position, item_id in enumerate(item_ids) if position % 5 != fold]
        scale = fit_standardizer(store, train).scale
        deviation = np.concatenate([store.rows(item_id) for item_id in train]).astype(np.float64).std(axis=0)
        assert scale.min() > 0.005 * typical  # on elephant deviations go down to 5e-4 of it
        varies = deviation > 0.02 * typical
        np.testing.assert_allclose(scale[varies], deviation[varies], rtol=1e-5)


def test_one_row_has_scale_one(store):
    standardizer = fit_standardizer(store, ["b"])
    np.testing.assert_array_equal(standardizer.scale, 1)
    np.testing.assert_array_equal(standardizer.mean, store.rows("b")[0])


def test_no_rows(store):
    with pytest.raises(ValueError, match="Expected rows to standardise on, got none"):
        fit_standardizer(store, [])
