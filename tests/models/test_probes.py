import json

import numpy as np
import pytest
import torch

from src.models.probes import Probe, pool_rows, read_dense_head
from src.stores.modules import load_module, save_module

ROWS = torch.tensor([[[1.0, -2.0], [3.0, 0.0], [5.0, -1.0]]])


@pytest.mark.parametrize(
    ("pool", "expected"),
    [("mean", [[3.0, -1.0]]), ("max", [[5.0, 0.0]]), ("cls", [[1.0, -2.0]]), ("none", ROWS[0].tolist())],
)
def test_rows_of_an_item_become_its_vector(pool, expected):
    assert pool_rows(ROWS, pool)[0].tolist() == expected


def test_an_unknown_pool_or_input_is_refused():
    with pytest.raises(ValueError, match="pool among mean, max, cls, none, got 'median'"):
        pool_rows(ROWS, "median")
    with pytest.raises(ValueError, match="got 'pixels'"):
        Probe(2, ("a", "b"), "pixels")
    with pytest.raises(ValueError, match="probe of 3 neurons to be as wide, got d_in=2"):
        Probe(2, ("a", "b"), "neurons", [1, 2, 3])


def test_shift_and_scale_are_inside():
    probe = Probe(2, ("a", "b"))
    with torch.no_grad():
        probe.output.weight.copy_(torch.eye(2))
        probe.output.bias.zero_()
    probe.input_mean.copy_(torch.tensor([3.0, -1.0]))
    probe.input_scale.copy_(torch.tensor([2.0, 4.0]))
    assert probe(torch.tensor([5.0, 3.0])).tolist() == [1.0, 1.0]
    assert probe.logits_of_rows(ROWS).tolist() == [[0.0, 0.0]]


def test_logits_of_every_row_are_averaged():
    torch.manual_seed(0)
    probe = Probe(2, ("a", "b", "c"), pool="none", d_hidden=5).eval()
    assert torch.allclose(probe.logits_of_rows(ROWS)[0], probe(ROWS[0]).mean(0))


@pytest.mark.parametrize("is_multilabel", [False, True])
def test_probabilities_exclude_each_other_or_not(is_multilabel):
    probe = Probe(2, ("a", "b"), is_multilabel=is_multilabel)
    probabilities = probe.probabilities(torch.tensor([[2.0, 2.0]]))[0]
    assert torch.allclose(probabilities, torch.full((2,), 2.0).sigmoid() if is_multilabel else torch.full((2,), 0.5))


def test_export_then_load_is_bit_exact(tmp_path):
    torch.manual_seed(0)
    probe = Probe(4, ("a", "b"), "neurons", [7, 3, 5, 1], "max", True, 6)
    probe.input_mean.normal_()
    save_module(probe, tmp_path, json.loads(json.dumps(probe.arguments)), {"l2": 0.1})
    loaded, metadata = load_module(tmp_path, Probe)
    x = torch.randn(3, 4)
    assert torch.equal(loaded(x), probe.eval()(x))
    assert loaded.arguments == probe.arguments
    assert metadata["l2"] == 0.1


def test_a_dense_head_of_one_or_two_layers_is_read(tmp_path):
    rng = np.random.default_rng(0)
    first, bias, second = rng.normal(size=(5, 3)), rng.normal(size=5), rng.normal(size=(2, 5))
    np.savez(tmp_path / "two.npz", **{"Dense1.kernel": first, "Dense1.bias": bias, "Dense2.kernel": second})
    x = rng.normal(size=(4, 3)).astype(np.float32)
    logits = read_dense_head(tmp_path / "two.npz", ["a", "b"])(torch.from_numpy(x))
    np.testing.assert_allclose(logits.detach(), np.maximum(x @ first.T + bias, 0) @ second.T, rtol=1e-5, atol=1e-6)
    np.savez(tmp_path / "one.npz", **{"Dense2.kernel": second})
    assert read_dense_head(tmp_path / "one.npz", ["a", "b"]).d_hidden == 0


def test_a_dense_head_of_other_classes_is_refused(tmp_path):
    np.savez(tmp_path / "head.npz", **{"Dense1.kernel": np.ones((2, 3))})
    with pytest.raises(ValueError, match="end in 3 classes"):
        read_dense_head(tmp_path / "head.npz", ["a", "b", "c"])
    with pytest.raises(FileNotFoundError, match="found no such file"):
        read_dense_head(tmp_path / "none.npz", ["a"])
