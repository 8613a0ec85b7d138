import pytest
import torch

from src.ops.row_norm import layer_norm_rows, z_score_rows

ROWS = torch.tensor([[1.0, 3.0], [5.0, 5.0]])


def test_z_score_divides_by_the_sample_deviation():
    normalized, statistics = z_score_rows(ROWS)
    # Row 0: mean 2, deviation sqrt(2) with ddof 1. Row 1 is constant: only the guard is left.
    assert statistics.mean.tolist() == [[2.0], [5.0]]
    torch.testing.assert_close(statistics.scale, torch.tensor([[2**0.5 + 1e-5], [1e-5]]))
    torch.testing.assert_close(normalized, torch.tensor([[-(0.5**0.5), 0.5**0.5], [0.0, 0.0]]), rtol=0, atol=1e-5)


def test_layer_norm_is_torch_s():
    rows = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)) * 3 + 1
    torch.testing.assert_close(layer_norm_rows(rows)[0], torch.nn.functional.layer_norm(rows, (9,)))
    statistics = layer_norm_rows(ROWS)[1]
    torch.testing.assert_close(statistics.scale, torch.tensor([[(1 + 1e-5) ** 0.5], [1e-5**0.5]]))


@pytest.mark.parametrize("normalize", [z_score_rows, layer_norm_rows])
def test_is_undone_and_blind_to_shift_and_scale(normalize):
    rows = torch.randn(6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    normalized, statistics = normalize(rows)
    torch.testing.assert_close(normalized * statistics.scale + statistics.mean, rows)
    torch.testing.assert_close(normalize(1e4 * rows + 7)[0], normalized, rtol=0, atol=1e-4)
    torch.testing.assert_close(normalized.mean(1), torch.zeros(6, dtype=torch.float64))
    assert statistics.mean.shape == statistics.scale.shape == (6, 1)


@pytest.mark.parametrize("normalize", [z_score_rows, layer_norm_rows])
def test_zero_rows_and_strided_rows(normalize):
    normalized, statistics = normalize(torch.zeros(0, 4))
    assert normalized.shape == (0, 4)
    assert statistics.mean.shape == (0, 1)
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).T
    torch.testing.assert_close(normalize(rows)[0], normalize(rows.contiguous())[0])
    assert not normalize(torch.zeros(2, 4))[0].any()
    assert not normalize(torch.ones(2, 1))[0].any()
