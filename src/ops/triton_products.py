"""Products of sparse latents with dense matrices on CUDA, by Triton kernels."""

import importlib.util
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from src.ops.sparse_latents import SparseLatents

# A program holds a tile of 8 entries by up to 256 columns: 8 rows are fetched at once to hide the latency of memory,
# and 256 float32 columns are one 16-byte load for each lane of the two warps. Both are untuned.
_BLOCK_ENTRIES = 8
_MOST_BLOCK_COLUMNS = 256
_WARPS = 2
# Neurons with more entries than about this are shared among programs (see `transposed_kernel`).
_SPAN = 256
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def is_available(tensor: Tensor) -> bool:
    """Says whether the kernels can take a tensor: on CUDA, at most float32, and Triton is installed."""
    return tensor.is_cuda and tensor.dtype in _DTYPES and importlib.util.find_spec("triton") is not None


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Runs a kernel on the device of its first argument; multiply-adds may be fused."""
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, **constants, enable_fp_fusion=True)


def decode_rows(latents: SparseLatents, atoms: Float[Tensor, "..."]) -> Float[Tensor, "{latents.n_rows} d_in"]:
    """Returns `latents @ atoms` [n_rows, d_in] for atoms [n_latents, d_in].

    Sums are float32; the result has the promoted type of the values and the atoms. Each of a row's blocks of columns
    is one program: rows hold similar numbers of entries and there are many, so they are not split further.
    """
    from src.ops import triton_product_kernels as kernels

    _check_table(atoms, latents.n_latents, "atoms")
    dtype = torch.promote_types(latents.values.dtype, atoms.dtype)
    sums = atoms.new_empty(latents.n_rows, atoms.shape[1], dtype=dtype)
    entries = (latents.neuron_ids.contiguous(), latents.values.contiguous(), latents.row_offsets.contiguous())
    grid = (latents.n_rows, _n_column_blocks(atoms))
    launch(kernels.decode_kernel, grid, sums, atoms, *entries, atoms.shape[1], *atoms.stride(), **_tile(atoms))
    return sums


def transposed_product(latents: SparseLatents, rows: Float[Tensor, "..."]) -> Float[Tensor, "{latents.n_latents} d"]:
    """Returns `latents.T @ rows` [n_latents, d] for rows [n_rows, d], the same bits on every run.

    Sums are float32; the result has the promoted type of the values and the rows. A neuron that fires in most rows
    would hold up all others, so a neuron's whole spans of 256 ordered entries are summed by programs of their own and
    added in order by a second kernel; the partial sums take n_entries / 256 rows of memory.
    """
    from src.ops import triton_product_kernels as kernels

    _check_table(rows, latents.n_rows, "rows")
    order = latents.neuron_order
    width = rows.shape[1]
    sums = rows.new_empty(latents.n_latents, width, dtype=torch.float32)
    n_spans = latents.n_entries // _SPAN
    span_sums = sums.new_empty(n_spans, width)
    n_blocks = _n_column_blocks(rows)
    ordered = (order.entries, latents.neuron_ids.contiguous(), order.neuron_offsets)
    entries = (order.row_ids, latents.values.contiguous(), *ordered)
    sizes = (n_spans, width, *rows.stride())
    grid = (n_spans + latents.n_latents, n_blocks)
    launch(kernels.transposed_kernel, grid, sums, span_sums, rows, *entries, *sizes, SPAN=_SPAN, **_tile(rows))
    if n_spans:
        constants = {"SPAN": _SPAN, "BLOCK_COLUMNS": _block_columns(rows), "num_warps": _WARPS}
        launch(kernels.add_spans_kernel, (n_spans, n_blocks), sums, span_sums, *ordered, width, **constants)
    return sums.to(torch.promote_types(latents.values.dtype, rows.dtype))


def kept_dot_products(
    pattern: SparseLatents, rows: Float[Tensor, "..."], atoms: Float[Tensor, "..."]
) -> Float[Tensor, " {pattern.n_entries}"]:
    """Returns `rows[i] @ atoms[j]` [n_entries] for every entry (i, j) of a pattern.

    Sums are float32; the result has the promoted type of the rows and the atoms. A program takes 8 neighbouring
    entries, most of them of one row, so that row is fetched about once per program.
    """
    from src.ops import triton_product_kernels as kernels

    _check_table(rows, pattern.n_rows, "rows")
    _check_table(atoms, pattern.n_latents, "atoms")
    if rows.shape[1] != atoms.shape[1]:
        raise ValueError(f"Expected rows and atoms of one width, got {rows.shape[1]} and {atoms.shape[1]}.")
    products = rows.new_empty(pattern.n_entries, dtype=torch.promote_types(rows.dtype, atoms.dtype))
    grid = (-(-pattern.n_entries // _BLOCK_ENTRIES),)
    entries = (pattern.row_ids, pattern.neuron_ids.contiguous(), pattern.n_entries)
    sizes = (rows.shape[1], *rows.stride(), *atoms.stride())
    launch(kernels.dot_products_kernel, grid, products, rows, atoms, *entries, *sizes, **_tile(rows))
    return products


def _check_table(table: Tensor, n_rows: int, name: str) -> None:
    # A kernel would read past the end of a shorter one.
    if table.ndim != 2 or table.shape[0] != n_rows:
        raise ValueError(f"Expected {name} [{n_rows}, d], got shape {tuple(table.shape)}.")


def _block_columns(table: Tensor) -> int:
    return min(_MOST_BLOCK_COLUMNS, 1 << (table.shape[1] - 1).bit_length())


def _n_column_blocks(table: Tensor) -> int:
    return -(-table.shape[1] // _block_columns(table))


def _tile(table: Tensor) -> dict[str, int]:
    return {"BLOCK_ENTRIES": _BLOCK_ENTRIES, "BLOCK_COLUMNS": _block_columns(table), "num_warps": _WARPS}
