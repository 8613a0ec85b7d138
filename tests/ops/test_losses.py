import pytest
import torch

from src.ops.losses import auxk_reconstruction, mean_l1, mean_squared_error
from src.ops.sparse_latents import SparseLatents


def test_mean_squared_error_is_over_rows_and_dimensions():
    assert float(mean_squared_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]]))) == 2.5


def test_mean_l1_is_per_row():
    latents = SparseLatents.from_dense(torch.tensor([[1.0, 2.0], [0.0, 5.0]]))
    assert float(mean_l1(latents)) == 4.0


@pytest.mark.parametrize(("k_aux", "expected"), [(1, 1.0), (2, 0.5), (9, 0.5)])
def test_auxk_decodes_the_largest_dead_latents_of_each_row(k_aux, expected):
    pre_latents = torch.tensor([[2.0, 1.0, -7.0]])
    atoms = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    residual = torch.tensor([[1.0, 1.0]])
    # k_aux 1: [2, 0] is off by [1, -1], mean square 1; from 2 on: [2, 1] is off by [1, 0], and ReLU keeps the -7 out.
    rebuilt = auxk_reconstruction(pre_latents, atoms, k_aux)
    assert float(mean_squared_error(rebuilt, residual)) == expected
