from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from src.stores.feature_data import FeatureData, feature_data_dir, read_feature_data, write_feature_data


def make(n_latents=6, n=3):
    generator = np.random.default_rng(0)
    return FeatureData(
        indices=generator.integers(0, 100, (n_latents, n)),
        values=np.sort(generator.random((n_latents, n)), axis=1)[:, ::-1].astype(np.float32),
        label_indices=generator.integers(0, 4, (n_latents, n)),
        mean_acts=np.array([*generator.random(n_latents - 1), np.nan], np.float32),
        sparsity=generator.random(n_latents).astype(np.float32),
        entropy=generator.random(n_latents).astype(np.float32),
        counts=generator.integers(0, 50, (4, n_latents)),
    )


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("float_indices", [False, True])
def test_files_come_back(tmp_path, transpose, float_indices):
    folder = feature_data_dir(tmp_path, "sae_x", "base", "cells")
    assert folder == tmp_path / "out" / "feature_data" / "sae_x" / "base" / "cells"
    write_feature_data(folder, make(), transpose, float_indices)
    found = read_feature_data(folder, n_classes=4, transpose=transpose)
    for field in fields(FeatureData):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(make(), field.name))
        assert getattr(found, field.name).dtype == getattr(make(), field.name).dtype
    assert np.load(folder / "cls_sae_cnt.npy").shape == ((6, 4) if transpose else (4, 6))
    stored = torch.load(folder / "max_activating_image_indices.pt", weights_only=True)
    assert stored.dtype == (torch.float32 if float_indices else torch.int64)


def test_entropy_and_counts_may_be_missing(tmp_path):
    write_feature_data(tmp_path, replace(make(), entropy=None, counts=None))
    found = read_feature_data(tmp_path)
    assert found.entropy is None
    assert found.counts is None


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    write_feature_data(tmp_path, make())
    with pytest.raises(ValueError, match=r"labels below 3 .* other classes"):
        read_feature_data(tmp_path, n_classes=3)
    with pytest.raises(ValueError, match="transpose=true"):
        read_feature_data(tmp_path, transpose=True)
    torch.save(torch.zeros(5), tmp_path / "sae_sparsity.pt")
    with pytest.raises(ValueError, match="one SAE"):
        read_feature_data(tmp_path)
    torch.save({"a": 1}, tmp_path / "sae_sparsity.pt")
    with pytest.raises(ValueError, match="a tensor in"):
        read_feature_data(tmp_path)
    (tmp_path / "sae_sparsity.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"sae_sparsity\.pt"):
        read_feature_data(tmp_path)


def test_labels_of_what_only_fills_a_list_up_do_not_count(tmp_path):
    data = make()
    data.values[0], data.label_indices[0] = 0, 99
    write_feature_data(tmp_path, data)
    assert read_feature_data(tmp_path, n_classes=4).label_indices[0, 0] == 99
