import numpy as np
import pytest

from src.analysis import archetypes
from src.analysis.archetypes import kmeans_centres


def _clusters(n_per_cluster=100):
    """Rows around three far points, and rows far away that no caller asks for."""
    generator = np.random.default_rng(0)
    places = np.array([[0.0, 0.0], [50.0, 0.0], [0.0, 80.0], [-900.0, -900.0]], dtype=np.float32)
    rows = np.repeat(places, n_per_cluster, axis=0)
    return (rows + generator.normal(size=rows.shape)).astype(np.float32), places[:3]


def test_finds_the_centres_of_the_rows_asked_for():
    activations, places = _clusters()
    centres = kmeans_centres(activations.__getitem__, np.arange(300), 3, seed=0)
    assert (centres.shape, centres.dtype) == ((3, 2), np.float32)
    nearest = np.linalg.norm(centres[:, None] - places, axis=2).argmin(1)
    assert sorted(nearest) == [0, 1, 2]
    np.testing.assert_allclose(centres, places[nearest], atol=0.5)


def test_the_seed_decides_and_rows_may_come_from_a_memory_map(tmp_path):
    activations, _ = _clusters()
    rows = np.random.default_rng(1).permutation(300)
    np.save(tmp_path / "activations.npy", activations)
    mapped = np.load(tmp_path / "activations.npy", mmap_mode="r")
    first = kmeans_centres(activations.__getitem__, rows, 12, seed=5)
    np.testing.assert_array_equal(kmeans_centres(mapped.__getitem__, rows, 12, seed=5), first)
    assert not np.array_equal(kmeans_centres(activations.__getitem__, rows, 12, seed=6), first)


def test_many_rows_are_sampled_by_the_seed(monkeypatch):
    activations, places = _clusters()
    monkeypatch.setattr(archetypes, "_MOST_ROWS", 90)
    centres = [kmeans_centres(activations.__getitem__, np.arange(300), 3, seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(centres[0], centres[1])
    assert not np.array_equal(centres[0], centres[2])
    distances = np.linalg.norm(centres[0][:, None] - places, axis=2)
    assert distances.min(1).max() < 1
    with pytest.raises(ValueError, match="at least 91 train rows for as many k-means centres, got 90"):
        kmeans_centres(activations.__getitem__, np.arange(300), 91, seed=0)


def test_needs_as_many_rows_as_centres():
    activations, _ = _clusters()
    assert kmeans_centres(activations.__getitem__, np.arange(3), 3, seed=0).shape == (3, 2)
    with pytest.raises(ValueError, match=r"at least 4 train rows .*, got 3: set sae.n_points lower"):
        kmeans_centres(activations.__getitem__, np.arange(3), 4, seed=0)
