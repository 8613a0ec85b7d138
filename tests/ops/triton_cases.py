"""What the Triton kernels must do: cases that run in Triton's interpreter on the CPU, and natively on a GPU.

Triton decides between interpreter and compiler when it is first imported, and torchvision and Lightning import it. So
a test process cannot switch; `test_triton_kernels` runs this module in a process of its own.
"""

import json
import sys
import traceback
from pathlib import Path
from unittest import mock

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.ops import screening, triton_encode, triton_products, triton_screening
from src.ops.sparse_latents import SparseLatents

_WIDTHS = st.sampled_from([1, 2, 5, 31, 64, 257, 600])
_SIZES = st.sampled_from([1, 2, 7, 40, 1024, 2500])
_SEEDS = st.integers(0, 2**31)
_EXAMPLES = settings(deadline=None, max_examples=25)


def _random(*shape, seed, device, dtype=torch.float32):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(device, dtype)


def _strided(table):
    """The same numbers with neither stride 1."""
    wide = table.new_full((table.shape[1], 2 * table.shape[0] + 1), torch.nan)
    wide[:, 1::2] = table.T
    return wide[:, 1::2].T


def _latents(n_rows, n_latents, density, seed, device, dtype=torch.float32):
    kept = torch.rand(n_rows, n_latents, generator=torch.Generator().manual_seed(seed)) < density
    values = _random(n_rows, n_latents, seed=seed + 1, device=device, dtype=dtype)
    return SparseLatents.from_dense(torch.where(kept.to(device), values, 0.0))


def _assert_products(latents, rows, atoms, rtol=1e-5):
    """Compares the three products with float64; `rtol` is relative to the sum of the absolute terms."""
    dense, wide_rows, wide_atoms = latents.to_dense().double(), rows.double(), atoms.double()
    entries = dense != 0
    for product, expected, scale in (
        (triton_products.decode_rows(latents, atoms), dense @ wide_atoms, dense.abs() @ wide_atoms.abs()),
        (triton_products.transposed_product(latents, rows), dense.T @ wide_rows, dense.T.abs() @ wide_rows.abs()),
        (
            triton_products.kept_dot_products(latents, rows, atoms),
            (wide_rows @ wide_atoms.T)[entries],
            (wide_rows.abs() @ wide_atoms.T.abs())[entries],
        ),
    ):
        assert product.shape == expected.shape
        assert torch.all((product.double() - expected).abs() <= rtol * scale)


@_EXAMPLES
@given(
    n_rows=st.integers(0, 9),
    n_latents=st.integers(1, 12),
    width=_WIDTHS,
    density=st.floats(0, 1),
    is_strided=st.booleans(),
    id_dtype=st.sampled_from([torch.int32, torch.int64]),
    span=st.sampled_from([1, 2, 4, 256]),
    seed=_SEEDS,
)
def case_products_of_random_shapes(device, n_rows, n_latents, width, density, is_strided, id_dtype, span, seed):
    latents = _latents(n_rows, n_latents, density, seed, device)
    latents = SparseLatents(latents.row_offsets, latents.neuron_ids.to(id_dtype), latents.values, latents.shape)
    rows = _random(n_rows, width, seed=seed + 2, device=device)
    atoms = _random(n_latents, width, seed=seed + 3, device=device)
    if is_strided:
        rows, atoms = _strided(rows), _strided(atoms)
    with mock.patch.object(triton_products, "_SPAN", span):
        _assert_products(latents, rows, atoms)


def case_products_without_entries(device):
    rows, atoms = (_random(n, 5, seed=n, device=device) for n in (3, 4))
    _assert_products(_latents(3, 4, 0, 0, device), rows, atoms)


def case_neurons_of_every_length(device):
    # Lengths around the span, so that neurons begin and end before, on and after its multiples.
    lengths = torch.tensor([0, 1, 255, 256, 257, 0, 511, 513, 1100, 3])
    fires = torch.arange(1100)[:, None] < lengths
    values = _random(1100, len(lengths), seed=0, device=device)
    latents = SparseLatents.from_dense(torch.where(fires.to(device), values, 0.0))
    rows = _random(1100, 20, seed=1, device=device)
    product = triton_products.transposed_product(latents, rows)
    dense = latents.to_dense().double()
    assert torch.all((product.double() - dense.T @ rows.double()).abs() <= 1e-5 * (dense.T.abs() @ rows.double().abs()))
    assert torch.equal(product, triton_products.transposed_product(latents, rows))


def case_products_of_a_slice_of_rows(device):
    latents = _latents(8, 6, 0.5, 0, device)
    rows, atoms = (_random(n, 9, seed=n, device=device) for n in (8, 6))
    for start, stop in ((3, 7), (7, 8)):
        _assert_products(latents.rows(start, stop), rows[start:stop], atoms)


def case_products_in_bfloat16(device):
    latents = _latents(30, 12, 0.5, 0, device, torch.bfloat16)
    rows, atoms = (_random(n, 70, seed=n, device=device, dtype=torch.bfloat16) for n in (30, 12))
    in_float32 = latents.with_values(latents.values.float())
    # The compiler rounds to bfloat16's 8 binary digits, the interpreter cuts off; the sums themselves are float32.
    rounding = 2**-8 if device == "cuda" else 2**-7
    with mock.patch.object(triton_products, "_SPAN", 4):
        _assert_products(latents, rows, atoms, rounding * (1 + 1e-5))
        _assert_products(in_float32, rows, atoms.float())
        _assert_products(in_float32, rows.float(), atoms)
    assert triton_products.decode_rows(latents, atoms).dtype == torch.bfloat16
    assert triton_products.transposed_product(latents, rows).dtype == torch.bfloat16
    assert triton_products.kept_dot_products(latents, rows, atoms).dtype == torch.bfloat16
    assert triton_products.decode_rows(in_float32, atoms).dtype == torch.float32


def _pre_latents(n_rows, n_latents, has_ties, is_strided, seed, device):
    pre_latents = _random(n_rows, n_latents, seed=seed, device=device)
    pre_latents = (2 * pre_latents).round() if has_ties else pre_latents
    return _strided(pre_latents) if is_strided else pre_latents


def _assert_same(latents, expected):
    """Checks values and ids exactly, against the dense latents."""
    reference = SparseLatents.from_dense(expected)
    assert latents.shape == reference.shape
    assert latents.neuron_ids.dtype == torch.int64
    assert latents.values.dtype == expected.dtype
    for name in ("row_offsets", "neuron_ids", "values"):
        assert torch.equal(getattr(latents, name), getattr(reference, name))


@_EXAMPLES
@given(
    n_rows=st.integers(0, 4),
    n_latents=_SIZES,
    has_ties=st.booleans(),
    is_strided=st.booleans(),
    kind=st.sampled_from([(), ("latents",), ("rows", 1)]),
    seed=_SEEDS,
)
def case_entries_above(device, n_rows, n_latents, has_ties, is_strided, kind, seed):
    pre_latents = _pre_latents(n_rows, n_latents, has_ties, is_strided, seed, device)
    sizes = {"rows": n_rows, "latents": n_latents, 1: 1}
    threshold = _random(*(sizes[size] for size in kind), seed=seed + 1, device=device).abs()
    threshold = threshold.round() if has_ties else threshold
    latents = triton_encode.entries_above(pre_latents, threshold)
    _assert_same(latents, torch.where(pre_latents > threshold, pre_latents, 0.0))


def case_entries_above_a_negative_threshold(device):
    pre_latents = _random(3, 50, seed=0, device=device)
    latents = triton_encode.entries_above(pre_latents, torch.tensor(-0.5, device=device))
    _assert_same(latents, torch.where(pre_latents > -0.5, pre_latents, 0.0))


def _largest_per_row(pre_latents, k):
    """The reference: a stable descending sort keeps the lowest ids among equals."""
    ids = pre_latents.sort(dim=1, descending=True, stable=True).indices[:, :k]
    kept = torch.zeros_like(pre_latents, dtype=torch.bool).scatter(1, ids, True)
    return torch.where(kept & (pre_latents > 0), pre_latents, 0.0)


@_EXAMPLES
@given(
    n_rows=st.integers(0, 4),
    n_latents=_SIZES,
    share=st.floats(0, 1),
    has_ties=st.booleans(),
    is_strided=st.booleans(),
    seed=_SEEDS,
)
def case_row_top_k(device, n_rows, n_latents, share, has_ties, is_strided, seed):
    k = max(1, round(share * n_latents))
    pre_latents = _pre_latents(n_rows, n_latents, has_ties, is_strided, seed, device)
    _assert_same(triton_encode.row_top_k(pre_latents, k), _largest_per_row(pre_latents, k))


def case_row_top_k_with_more_groups_than_fit(device):
    pre_latents = _random(2, 600, seed=0, device=device)
    for k in (3, 100, 299, 300, 599, 600, 700):
        with mock.patch.object(triton_encode, "_BLOCK", 8), mock.patch.object(triton_encode, "_MOST_GROUPS", 64):
            _assert_same(triton_encode.row_top_k(pre_latents, k), _largest_per_row(pre_latents, k))


def case_row_top_k_of_equal_values(device):
    pre_latents = torch.full((2, 3000), 1.5, device=device)
    pre_latents[1, 700:] = 2.5
    for k in (1, 5, 256, 257, 2300, 2301, 3000):
        _assert_same(triton_encode.row_top_k(pre_latents, k), _largest_per_row(pre_latents, k))


def case_row_top_k_of_extreme_values(device):
    smallest = 2.0**-149
    rows = [
        [torch.inf, 1.0, torch.inf, -torch.inf, 3.0e38],
        [smallest, 2 * smallest, smallest, 0.0, -smallest],
        [-1.0, -2.0, -0.0, 0.0, -3.0],
        [1.0, 1.0 + 2**-23, 1.0, 1.0 - 2**-24, 1.0],
    ]
    pre_latents = torch.tensor(rows, device=device)
    for k in range(1, 6):
        _assert_same(triton_encode.row_top_k(pre_latents, k), _largest_per_row(pre_latents, k))


def case_selection_in_bfloat16(device):
    pre_latents = _random(3, 1500, seed=0, device=device, dtype=torch.bfloat16)
    for k in (1, 40, 1500):
        _assert_same(triton_encode.row_top_k(pre_latents, k), _largest_per_row(pre_latents, k))
    threshold = torch.tensor(0.75, device=device)
    _assert_same(triton_encode.entries_above(pre_latents, threshold), torch.where(pre_latents > 0.75, pre_latents, 0.0))


def _whole_numbers(n_rows, width, seed, device):
    """Small enough for every sum to be exact."""
    return _random(n_rows, width, seed=seed, device=device).mul(2).round().to(torch.bfloat16)


def _dots_in_float32(kernel, grid, *arguments, **constants):
    """Launches with bfloat16 operands widened: the interpreter multiplies their bits as whole numbers."""
    wide = [one.float() if getattr(one, "dtype", None) == torch.bfloat16 else one for one in arguments]
    triton_products.launch(kernel, grid, *wide, **constants)


def _dots(device):
    return mock.patch.object(
        triton_screening, "launch", triton_products.launch if device == "cuda" else _dots_in_float32
    )


@settings(deadline=None, max_examples=6)
@given(
    n_rows=st.sampled_from([1, 7, 130]),
    n_latents=st.sampled_from([1, 40, 300]),
    width=st.sampled_from([64, 192]),
    has_bounds=st.booleans(),
    seed=_SEEDS,
)
def case_screening_reaches_bounds(device, n_rows, n_latents, width, has_bounds, seed):
    rows, weights = (_whole_numbers(n, width, seed + n, device) for n in (n_rows, n_latents))
    bounds = 10 * _random(n_rows, seed=seed, device=device).round() if has_bounds else None
    product = rows.float() @ weights.float().T
    expected = (product >= (0.0 if bounds is None else bounds[:, None])).flatten().nonzero().squeeze(1)
    with _dots(device):
        found = triton_screening.reaching(rows, weights, bounds, len(expected))
        assert found is not None
        assert torch.equal(found, expected)
        if len(expected):
            assert triton_screening.reaching(rows, weights, bounds, len(expected) - 1) is None


def case_screening_group_maxima(device):
    rows, weights = (_whole_numbers(n, 64, n, device) for n in (130, 300))
    product = rows.float() @ weights.float().T
    for n_groups, group_size in ((300, 1), (150, 2), (20, 8), (2, 128)):
        expected = torch.stack([group.amax(1) for group in product.split(group_size, 1)], 1)
        with _dots(device):
            assert torch.equal(triton_screening.group_maxima(rows, weights, n_groups), expected)


def case_screening_selects_what_float32_does(device):
    x, W = (_random(n, 124, seed=n, device=device) for n in (300, 400))  # with four columns more 128
    b = _random(400, seed=0, device=device)
    pre_latents = x.double() @ W.double().T + b
    with mock.patch.object(triton_products, "is_available", return_value=True), _dots(device):
        above = screening.screened_above(x, W, b, torch.tensor(28.0, device=device))
        largest = screening.screened_largest_per_row(x, W, b, 5)
    with mock.patch.object(screening, "_MOST_CANDIDATES", 0.0):  # the float32 product
        plain_above = screening.screened_above(x, W, b, torch.tensor(28.0, device=device))
        plain_largest = screening.screened_largest_per_row(x, W, b, 5)
    for found, plain in ((above, plain_above), (largest, plain_largest)):
        assert found.n_entries > 100
        assert torch.equal(found.row_offsets, plain.row_offsets)
        assert torch.equal(found.neuron_ids, plain.neuron_ids)
        expected = pre_latents[found.row_ids, found.neuron_ids]
        assert torch.all((found.values - expected).abs() <= 1e-4)


CASES = {name.removeprefix("case_"): case for name, case in list(globals().items()) if name.startswith("case_")}


def _outcome(case):
    try:
        case(device="cpu")
    except Exception:  # whatever it is, the test of this name fails with it
        return traceback.format_exc()
    return None


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps({name: _outcome(case) for name, case in CASES.items()}))
