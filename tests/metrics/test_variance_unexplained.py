import math

import pytest
import torch
from jaxtyping import TypeCheckError

from src.metrics import variance_unexplained
from src.metrics.variance_unexplained import FractionOfVarianceUnexplained


def test_hand_computed_case():
    # Mean (1, 2); squared distances 1 + 4 + 1 + 4 = 10; squared errors 1 + 1 = 2. About zero it would be 2 / 20.
    metric = FractionOfVarianceUnexplained(2)
    metric.update(torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.tensor([[2.0, 1.0], [0.0, 3.0]]))
    assert float(metric.compute()) == pytest.approx(0.2)


def test_does_not_depend_on_the_batches_or_on_a_large_offset(monkeypatch):
    activations = torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e4
    reconstruction = activations + 0.1 * torch.randn(100, 3, generator=torch.Generator().manual_seed(1))
    expected = (activations - reconstruction).square().sum() / (activations - activations.mean(0)).square().sum()
    monkeypatch.setattr(variance_unexplained, "_PIECE_ROWS", 7)
    for cuts in ([100], [1, 60, 39]):
        metric = FractionOfVarianceUnexplained(3)
        for rows, other in zip(activations.split(cuts), reconstruction.split(cuts), strict=True):
            metric.update(rows, other)
        assert float(metric.compute()) == pytest.approx(float(expected), rel=1e-6)


def test_mean_reconstruction_explains_nothing():
    activations = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    metric = FractionOfVarianceUnexplained(4)
    metric.update(activations, activations.mean(0).expand_as(activations))
    assert float(metric.compute()) == pytest.approx(1.0)


def test_is_undefined_without_variance():
    metric = FractionOfVarianceUnexplained(2)
    metric.update(torch.ones(3, 2), torch.zeros(3, 2))
    assert math.isnan(float(metric.compute()))


def test_refuses_other_shapes():
    with pytest.raises(TypeCheckError, match=r"'reconstruction'"):
        FractionOfVarianceUnexplained(2).update(torch.ones(3, 2), torch.ones(2, 2))


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_is_not_finite_is_an_error_and_not_undefined(value):
    metric = FractionOfVarianceUnexplained(2)
    metric.update(torch.randn(4, 2), torch.tensor([[0.0, 0.0]] * 3 + [[0.0, value]]))
    with pytest.raises(ValueError, match="finite activations and reconstructions, got a squared error of"):
        metric.compute()
