"""Screened selection is that of the float32 product: no pair is missed, whatever the numbers."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from src.ops import screening, screening_bound
from src.ops.screening import screened_above, screened_largest_per_row
from src.ops.screening_bound import screening_rows, screening_weights
from src.ops.selection import keep_largest_per_row
from src.ops.sparse_products import pre_latents_above

KINDS = ("plain", "near ties", "huge", "denormal", "cancelling", "constant rows", "hard to round", "one long row")


@pytest.fixture(autouse=True)
def never_too_many(monkeypatch):
    """Small cases have many candidates; they are to be screened all the same."""
    monkeypatch.setattr(screening, "_MOST_CANDIDATES", 1.0)


def operands(kind, n_rows, d_in, n_latents, seed):
    """Returns inputs, weights and biases with properties that make rounding or bounds go wrong."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    x, W, b = normal(n_rows, d_in), normal(n_latents, d_in), normal(n_latents)
    if kind == "near ties":
        W = W[:1] + 2.0**-12 * W
    elif kind == "huge":
        x, b = x * 2.0**40, b * 2.0**40
    elif kind == "denormal":
        x, W, b = x * 2.0**-130, W * 2.0**-3, b * 2.0**-133
    elif kind == "cancelling":
        half = max(d_in // 2, 1)
        x = torch.cat([x[:, :half], x[:, :half] * (1 + 2.0**-9)], 1)[:, :d_in] * 100
        W = torch.cat([W[:, :half], -W[:, :half]], 1)[:, :d_in]
        x, W = F.pad(x, (0, d_in - x.shape[1])), F.pad(W, (0, d_in - W.shape[1]))
    elif kind == "constant rows":
        x, W = x[:, :1].expand(-1, d_in).contiguous(), W[:, :1].expand(-1, d_in).contiguous()
    elif kind == "hard to round":  # half-way between two bfloat16 numbers, and just beside
        x = (1 + 2.0**-8) * (1 + normal(n_rows, d_in).sign() * 2.0**-20) * x.sign()
        W = (1 + 2.0**-8) * (1 + normal(n_latents, d_in).sign() * 2.0**-20) * W.sign()
    elif kind == "one long row":
        x[0] *= 1e4
    return x, W, b


def float32_rounding(x, W, b, exact):
    """Returns by how much a float32 sum of each pre-latent may be off."""
    lengths = torch.linalg.vector_norm(x.double(), dim=1)[:, None] * torch.linalg.vector_norm(W.double(), dim=1)
    return 2.0**-23 * (x.shape[1] * lengths + exact.abs() + b.double().abs()) + x.shape[1] * 2.0**-126


def assert_selects_what_is_above(x, W, b, threshold):
    """Compares with float64; only what two float32 sums could disagree about may differ."""
    found = screened_above(x, W, b, threshold)
    exact = x.double() @ W.double().T + b.double()
    rounding = float32_rounding(x, W, b, exact)
    is_kept = torch.zeros(found.shape, dtype=torch.bool)
    is_kept[found.row_ids, found.neuron_ids] = True
    differs = is_kept != (exact > threshold.double())
    assert not (differs & ((exact - threshold.double()).abs() > rounding)).any()
    assert (found.values > threshold.expand(W.shape[0])[found.neuron_ids]).all()
    error = (found.values.double() - exact[found.row_ids, found.neuron_ids]).abs()
    assert (error <= rounding[found.row_ids, found.neuron_ids]).all()


@given(
    kind=st.sampled_from(KINDS),
    n_rows=st.integers(1, 40),
    d_in=st.integers(1, 150),
    n_latents=st.integers(1, 60),
    share=st.floats(0.01, 0.99),
    per_neuron=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_what_is_above_a_threshold_is_found(kind, n_rows, d_in, n_latents, share, per_neuron, seed):
    x, W, b = operands(kind, n_rows, d_in, n_latents, seed)
    pre_latents = F.linear(x, W, b)
    # Thresholds that are pre-latents themselves: many pairs lie at the edge.
    threshold = pre_latents.quantile(share, dim=0 if per_neuron else None, interpolation="nearest")
    assert_selects_what_is_above(x, W, b, threshold)


@given(
    kind=st.sampled_from(KINDS),
    n_rows=st.integers(1, 40),
    d_in=st.integers(1, 150),
    n_latents=st.integers(1, 60),
    seed=st.integers(0, 2**31),
)
def test_the_product_is_never_below_what_it_bounds(kind, n_rows, d_in, n_latents, seed):
    x, W, b = operands(kind, n_rows, d_in, n_latents, seed)
    threshold = b.abs() * 0.5
    weights = screening_weights(W, b, threshold)
    rows = screening_rows(x, weights.extended.shape[1])
    product = rows.extended.double() @ weights.extended.double().T
    bounded = x.double() @ W.double().T + (b.double() - threshold.double())
    assert weights.is_safe
    assert rows.is_safe.all()
    assert (product >= bounded).all()
    # And not far above, or everything would be a candidate.
    norms = [torch.linalg.vector_norm(one, dim=1) + 2.0**-50 for one in (W.double(), (W - W.bfloat16()).double())]
    errors = rows.error_norms.double() @ torch.stack(norms)
    assert (product <= bounded + 2.2 * errors + 2.0**-10 * (b.double().abs() + threshold.double())).all()


@pytest.mark.parametrize("factor", [0.0, 0.1])
def test_a_bound_that_is_too_small_is_noticed(monkeypatch, factor):
    true = screening_bound.error_norms
    monkeypatch.setattr(screening_bound, "error_norms", lambda *facts: factor * true(*facts))
    # Just below the middle of two bfloat16 numbers: all are rounded down.
    x, W, b = (
        torch.full((20, 64), 1 + 2.0**-8 - 2.0**-20),
        torch.full((30, 64), 1 + 2.0**-8 - 2.0**-20),
        torch.zeros(30),
    )
    threshold = F.linear(x, W, b)[0] * (1 - 1e-4)
    with pytest.raises(AssertionError):
        assert_selects_what_is_above(x, W, b, threshold)


@given(
    kind=st.sampled_from(KINDS),
    n_rows=st.integers(1, 30),
    d_in=st.integers(1, 100),
    n_latents=st.integers(1, 200),
    k=st.integers(1, 20),
    seed=st.integers(0, 2**31),
)
def test_the_largest_of_each_row_are_found(kind, n_rows, d_in, n_latents, k, seed):
    x, W, b = operands(kind, n_rows, d_in, n_latents, seed)
    found = screened_largest_per_row(x, W, b, k).to_dense().double()
    exact = (x.double() @ W.double().T + b.double()).clamp_min(0)
    rounding = float32_rounding(x, W, b, exact)
    kept = found > 0
    assert (kept.sum(1) <= k).all()
    assert ((found - exact).abs()[kept] <= rounding[kept]).all()
    smallest = torch.where(kept.sum(1) == k, torch.where(kept, found, torch.inf).amin(1), 0.0)
    left_out = torch.where(kept, 0.0, exact - 2 * rounding.amax(1, keepdim=True))
    assert (left_out <= smallest[:, None]).all()


def test_ties_go_to_the_lowest_neurons():
    x = torch.ones(3, 4)
    W = torch.ones(50, 4)
    W[7] = 2
    kept = screened_largest_per_row(x, W, None, 3)
    assert kept.neuron_ids.tolist() == [0, 1, 7] * 3
    assert kept.values.tolist() == [4.0, 4.0, 8.0] * 3


@pytest.mark.parametrize("k", [1, 5])
def test_whole_numbers_give_the_same_entries_bit_for_bit(k):
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-3, 4, (600, 40), generator=generator).float()
    W = torch.randint(-3, 4, (96, 40), generator=generator).float()
    b = torch.randint(-5, 6, (96,), generator=generator).float()
    for one, other in (
        (screened_above(x, W, b, torch.tensor(40.0)), pre_latents_above(x, W, b, torch.tensor(40.0))),
        (screened_above(x, W, None, b.abs() + 30), pre_latents_above(x, W, None, b.abs() + 30)),
        (screened_largest_per_row(x, W, b, k), keep_largest_per_row([F.linear(x, W, b)], k)),
    ):
        assert torch.equal(one.row_offsets, other.row_offsets)
        assert torch.equal(one.neuron_ids, other.neuron_ids)
        assert torch.equal(one.values, other.values)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_rows_that_no_bound_holds_for_take_the_float32_product(value):
    x, W, b = operands("plain", 20, 8, 30, seed=0)
    x[3, 2] = value
    threshold = torch.tensor(1.0)
    expected = pre_latents_above(x, W, b, threshold)
    found = screened_above(x, W, b, threshold)
    assert torch.equal(found.neuron_ids, expected.neuron_ids)
    assert torch.equal(found.values, expected.values)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 1e30])
def test_thresholds_that_no_bound_holds_for_take_the_float32_product(value):
    x, W, b = operands("plain", 20, 8, 30, seed=0)
    threshold = torch.ones(30)
    threshold[4] = value
    found, expected = screened_above(x, W, b, threshold), pre_latents_above(x, W, b, threshold)
    assert torch.equal(found.neuron_ids, expected.neuron_ids)
    assert torch.equal(found.values, expected.values)


def test_where_much_is_above_the_float32_product_is_taken(monkeypatch):
    monkeypatch.setattr(screening, "_MOST_CANDIDATES", 1 / 16)
    x, W, b = operands("plain", 300, 8, 30, seed=0)
    found, expected = screened_above(x, W, b, torch.tensor(0.0)), pre_latents_above(x, W, b, torch.tensor(0.0))
    assert torch.equal(found.values, expected.values)


def test_no_rows_have_no_entries():
    W = torch.ones(8, 4)
    assert screened_above(torch.zeros(0, 4), W, None, torch.tensor(1.0)).shape == (0, 8)
    assert screened_largest_per_row(torch.zeros(0, 4), W, None, 1).shape == (0, 8)
