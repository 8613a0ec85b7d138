"""Triton kernels of the products of sparse latents with dense matrices; `triton_products` launches them.

Sums are taken in float32 in an order that the arguments fix: one program writes each number, and nothing is atomic.
"""
# ruff: noqa: ANN001, ANN201, ANN202 - the compiler takes no types but constexpr

import triton
import triton.language as tl


@triton.jit
def _row_tile(table, ids, is_entry, columns, is_column, row_stride, column_stride):
    """Loads the rows `ids` of a table [*, width] at some columns, in float32 and 0 where masked."""
    places = ids.to(tl.int64)[:, None] * row_stride + columns[None, :] * column_stride
    return tl.load(table + places, mask=is_entry[:, None] & is_column[None, :], other=0.0).to(tl.float32)


@triton.jit
def _weighted_rows(
    start,
    end,
    table,
    ids,
    values,
    entries,
    columns,
    is_column,
    row_stride,
    column_stride,
    BLOCK_ENTRIES: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Sums `value * table[id]` over the entries start:end; `entries` says where their values stand, or is None."""
    sums = tl.full((BLOCK_COLUMNS,), 0.0, tl.float32)
    for first in range(start, end, BLOCK_ENTRIES):
        places = first + tl.arange(0, BLOCK_ENTRIES)
        is_entry = places < end
        rows = _row_tile(
            table,
            tl.load(ids + places, mask=is_entry, other=0),
            is_entry,
            columns,
            is_column,
            row_stride,
            column_stride,
        )
        if entries is not None:
            places = tl.load(entries + places, mask=is_entry, other=0)
        weights = tl.load(values + places, mask=is_entry, other=0.0).to(tl.float32)
        sums += tl.sum(weights[:, None] * rows, axis=0)
    return sums


@triton.jit
def decode_kernel(
    sums,
    atoms,
    neuron_ids,
    values,
    row_offsets,
    width,
    row_stride,
    column_stride,
    BLOCK_ENTRIES: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Writes `sum(value * atoms[neuron_id])` over a row's entries; grid (rows, blocks of columns)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1).to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    is_column = columns < width
    total = _weighted_rows(
        tl.load(row_offsets + row),
        tl.load(row_offsets + row + 1),
        atoms,
        neuron_ids,
        values,
        None,
        columns,
        is_column,
        row_stride,
        column_stride,
        BLOCK_ENTRIES,
        BLOCK_COLUMNS,
    )
    tl.store(sums + row * width + columns, total, mask=is_column)


# A number that differs in each batch must not make another compilation.
@triton.jit(do_not_specialize=["n_spans"])
def transposed_kernel(
    sums,
    span_sums,
    rows,
    row_ids,
    values,
    entries,
    neuron_ids,
    neuron_offsets,
    n_spans,
    width,
    row_stride,
    column_stride,
    SPAN: tl.constexpr,
    BLOCK_ENTRIES: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Sums `value * rows[row_id]` over each neuron's entries; grid (n_spans + neurons, blocks of columns).

    The first `n_spans` programs each take one aligned span of the ordered entries and sum it when it belongs to one
    neuron alone. A neuron's program takes the entries before its first and after its last whole span, or all of them
    when it has no whole span: fewer than 2 * SPAN in any case.
    """
    program = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1).to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    is_column = columns < width
    if program < n_spans:
        start = program * SPAN
        first_neuron = tl.load(neuron_ids + tl.load(entries + start))
        last_neuron = tl.load(neuron_ids + tl.load(entries + start + SPAN - 1))
        end = tl.where(first_neuron == last_neuron, start + SPAN, start)
        tail = end
        tail_end = end
        target = span_sums + program * width
    else:
        neuron = program - n_spans
        start = tl.load(neuron_offsets + neuron)
        tail_end = tl.load(neuron_offsets + neuron + 1)
        head_end = (start + SPAN - 1) // SPAN * SPAN
        tail = tail_end // SPAN * SPAN
        has_spans = head_end < tail
        end = tl.where(has_spans, head_end, tail_end)
        tail = tl.where(has_spans, tail, tail_end)
        target = sums + neuron * width
    total = _weighted_rows(
        start,
        end,
        rows,
        row_ids,
        values,
        entries,
        columns,
        is_column,
        row_stride,
        column_stride,
        BLOCK_ENTRIES,
        BLOCK_COLUMNS,
    )
    total += _weighted_rows(
        tail,
        tail_end,
        rows,
        row_ids,
        values,
        entries,
        columns,
        is_column,
        row_stride,
        column_stride,
        BLOCK_ENTRIES,
        BLOCK_COLUMNS,
    )
    tl.store(target + columns, total, mask=is_column)


@triton.jit
def add_spans_kernel(
    sums, span_sums, entries, neuron_ids, neuron_offsets, width, SPAN: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    """Adds each neuron's whole spans to its sum, in order; grid (n_spans, blocks of columns).

    The program of a neuron's first whole span does it; the other programs end at once.
    """
    span = tl.program_id(0).to(tl.int64)
    neuron = tl.load(neuron_ids + tl.load(entries + span * SPAN)).to(tl.int64)
    first = (tl.load(neuron_offsets + neuron) + SPAN - 1) // SPAN
    end = tl.load(neuron_offsets + neuron + 1) // SPAN
    if span == first:
        columns = tl.program_id(1).to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        is_column = columns < width
        total = tl.load(sums + neuron * width + columns, mask=is_column, other=0.0)
        for part in range(first, end):
            total += tl.load(span_sums + part * width + columns, mask=is_column, other=0.0)
        tl.store(sums + neuron * width + columns, total, mask=is_column)


@triton.jit(do_not_specialize=["n_entries"])
def dot_products_kernel(
    products,
    rows,
    atoms,
    row_ids,
    neuron_ids,
    n_entries,
    width,
    rows_stride,
    rows_column_stride,
    atoms_stride,
    atoms_column_stride,
    BLOCK_ENTRIES: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Writes `rows[row_id] . atoms[neuron_id]` of each entry; grid (blocks of entries,)."""
    places = tl.program_id(0).to(tl.int64) * BLOCK_ENTRIES + tl.arange(0, BLOCK_ENTRIES)
    is_entry = places < n_entries
    entry_rows = tl.load(row_ids + places, mask=is_entry, other=0)
    entry_atoms = tl.load(neuron_ids + places, mask=is_entry, other=0)
    sums = tl.full((BLOCK_ENTRIES, BLOCK_COLUMNS), 0.0, tl.float32)
    for first in range(0, width, BLOCK_COLUMNS):
        columns = first + tl.arange(0, BLOCK_COLUMNS).to(tl.int64)
        is_column = columns < width
        of_rows = _row_tile(rows, entry_rows, is_entry, columns, is_column, rows_stride, rows_column_stride)
        of_atoms = _row_tile(atoms, entry_atoms, is_entry, columns, is_column, atoms_stride, atoms_column_stride)
        sums += of_rows * of_atoms
    tl.store(products + places, tl.sum(sums, axis=1), mask=is_entry)
