import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from src.metrics.reconstruction import CosineSimilarity, L2Ratio, NormalizedMSE, RelativeReconstructionBias
from src.metrics.variance_unexplained import FractionOfVarianceUnexplained

METRICS = {
    "fvu": lambda: FractionOfVarianceUnexplained(3),
    "nmse": NormalizedMSE,
    "cosine": CosineSimilarity,
    "bias": RelativeReconstructionBias,
    "l2_ratio": L2Ratio,
}


def value_of(metric, activations, reconstruction, cuts=None):
    cuts = cuts or [len(activations)]
    for batch in zip(activations.split(cuts), reconstruction.split(cuts), strict=True):
        metric.update(*batch)
    return float(metric.compute())


def test_published_case():
    # SAELens pull request 665: explained variance 0.8. About zero the same errors are 2 / 20.
    activations = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    reconstruction = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    assert 1 - value_of(FractionOfVarianceUnexplained(2), activations, reconstruction) == pytest.approx(0.8)
    assert value_of(NormalizedMSE(), activations, reconstruction) == pytest.approx(0.1)
    assert value_of(CosineSimilarity(), activations, reconstruction) == pytest.approx((4 / (2 * math.sqrt(5)) + 1) / 2)
    assert value_of(RelativeReconstructionBias(), activations, reconstruction) == pytest.approx(14 / 16)
    assert value_of(L2Ratio(), activations, reconstruction) == pytest.approx((math.sqrt(5) / 2 + 3 / 4) / 2)


@settings(deadline=None)
@given(st.floats(0.1, 10), st.integers(0, 100))
def test_a_common_factor_changes_lengths_and_nothing_else(factor, seed):
    activations = torch.randn(20, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert value_of(CosineSimilarity(), activations, factor * activations) == pytest.approx(1)
    assert value_of(RelativeReconstructionBias(), activations, factor * activations) == pytest.approx(factor)
    assert value_of(L2Ratio(), activations, factor * activations) == pytest.approx(factor)
    assert value_of(NormalizedMSE(), activations, factor * activations) == pytest.approx((factor - 1) ** 2, abs=1e-12)


def test_dividing_by_the_bias_makes_the_error_least():
    generator = torch.Generator().manual_seed(0)
    activations, noise = torch.randn(2, 50, 3, generator=generator, dtype=torch.float64)
    reconstruction = 0.7 * activations + 0.2 * noise
    bias = value_of(RelativeReconstructionBias(), activations, reconstruction)
    best = value_of(NormalizedMSE(), activations, reconstruction / bias)
    for nearby in (0.99 * bias, 1.01 * bias):
        assert value_of(NormalizedMSE(), activations, reconstruction / nearby) > best


@settings(deadline=None, max_examples=50)
@given(data=st.data(), seed=st.integers(0, 1000), n_rows=st.integers(1, 40), name=st.sampled_from(sorted(METRICS)))
def test_batches_do_not_change_the_number(data, seed, n_rows, name):
    generator = torch.Generator().manual_seed(seed)
    activations = torch.randn(n_rows, 3, generator=generator) + 2
    reconstruction = activations + torch.randn(n_rows, 3, generator=generator)
    bounds = sorted({0, n_rows, *data.draw(st.lists(st.integers(0, n_rows), max_size=5))})
    cuts = np.diff(bounds).tolist()
    whole = value_of(METRICS[name](), activations, reconstruction)
    assert value_of(METRICS[name](), activations, reconstruction, cuts) == pytest.approx(whole, rel=1e-9, nan_ok=True)


def test_many_unequal_batches_are_not_averaged():
    activations = torch.cat([torch.ones(1, 1), torch.full((99, 1), 10.0)])
    reconstruction = torch.cat([torch.zeros(1, 1), activations[1:]])
    assert value_of(NormalizedMSE(), activations, reconstruction, [1, 99]) == pytest.approx(1 / 9901)


def test_nmse_is_fvu_where_activations_are_centred():
    activations = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    activations -= activations.mean(0)
    reconstruction = 0.5 * activations
    fvu = value_of(FractionOfVarianceUnexplained(3), activations, reconstruction)
    assert value_of(NormalizedMSE(), activations, reconstruction) == pytest.approx(fvu)
    shifted = (activations + 100, reconstruction + 100)
    assert value_of(NormalizedMSE(), *shifted) < 1e-3 * value_of(FractionOfVarianceUnexplained(3), *shifted)


def test_rows_without_length():
    activations = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]])
    reconstruction = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    # The cosine of the first and the last is 0; the first has no ratio, the last one of 0.
    assert value_of(CosineSimilarity(), activations, reconstruction) == pytest.approx(1 / 3)
    assert value_of(L2Ratio(), activations, reconstruction) == pytest.approx(1 / 2)


@pytest.mark.parametrize("metric", [NormalizedMSE, CosineSimilarity, RelativeReconstructionBias, L2Ratio])
def test_undefined_without_anything_to_measure(metric):
    assert math.isnan(value_of(metric(), torch.empty(0, 3), torch.empty(0, 3), [0]))


@pytest.mark.parametrize("metric", [NormalizedMSE, CosineSimilarity, RelativeReconstructionBias, L2Ratio])
def test_refuses_what_would_broadcast(metric):
    with pytest.raises(TypeCheckError, match="'reconstruction'"):
        metric().terms(torch.ones(4, 3), torch.ones(1, 3))
