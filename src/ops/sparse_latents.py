"""Sparse latents: the one value that SAEs produce, training differentiates through, stores write and analyses read."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, Int64, Shaped
from torch import Tensor


class NeuronOrder(NamedTuple):
    """The kept entries sorted by neuron, then by row: the pattern of the transposed latents.

    Neuron `j` holds the entries `neuron_offsets[j]:neuron_offsets[j + 1]` of `row_ids` (the rows it fires in) and of
    `entries` (where those entries stand in `SparseLatents.values`).
    """

    neuron_offsets: Int[Tensor, " n_latents+1"]
    row_ids: Int64[Tensor, " n_entries"]
    entries: Int64[Tensor, " n_entries"]


@dataclass(frozen=True, eq=False)
class SparseLatents:
    """Latents of a batch in compressed sparse rows (CSR): what is not listed is zero.

    Row `i` holds the entries `row_offsets[i]:row_offsets[i + 1]`; neuron ids ascend strictly within a row.

    Attributes:
        row_offsets: [n_rows + 1] int64, starts with 0, ends with the number of entries.
        neuron_ids: [n_entries] int64 (or int32), each below n_latents.
        values: [n_entries]; may carry a gradient.
        shape: (n_rows, n_latents).
    """

    row_offsets: Int64[Tensor, "..."]
    neuron_ids: Int[Tensor, "..."]
    values: Shaped[Tensor, "..."]
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        if self.row_offsets.shape != (self.shape[0] + 1,):
            raise ValueError(
                f"Expected n_rows + 1 = {self.shape[0] + 1} row offsets, got {tuple(self.row_offsets.shape)}."
            )
        if self.neuron_ids.ndim != 1 or self.neuron_ids.shape != self.values.shape:
            raise ValueError(
                "Expected one value per neuron id, got "
                f"{tuple(self.values.shape)} values for {tuple(self.neuron_ids.shape)} ids."
            )

    @classmethod
    def from_dense(cls, latents: Shaped[Tensor, "n_rows n_latents"]) -> "SparseLatents":
        """Returns the non-zero entries of dense latents [n_rows, n_latents]; differentiable in the values."""
        flat_ids = latents.detach().reshape(-1).nonzero().squeeze(1)
        return cls.from_flat_ids(flat_ids, latents.reshape(-1)[flat_ids], (latents.shape[0], latents.shape[1]))

    @classmethod
    def from_flat_ids(
        cls, flat_ids: Int64[Tensor, " n_entries"], values: Shaped[Tensor, " n_entries"], shape: tuple[int, int]
    ) -> "SparseLatents":
        """Returns latents from ascending positions `row * n_latents + neuron_id` [n_entries] and their values."""
        n_rows, n_latents = shape
        row_starts = torch.arange(n_rows + 1, device=flat_ids.device) * n_latents
        return cls(torch.searchsorted(flat_ids, row_starts), flat_ids % n_latents, values, shape)

    @classmethod
    def cat(cls, parts: Sequence["SparseLatents"]) -> "SparseLatents":
        """Stacks the rows of several latents of one SAE.

        Raises:
            ValueError: when there are none, or their numbers of latents differ.
        """
        widths = {part.n_latents for part in parts}
        if len(widths) != 1:
            raise ValueError(f"Expected latents of one width, got {sorted(widths) or 'nothing'}.")
        if len(parts) == 1:
            return parts[0]
        starts = torch.tensor([0, *(part.n_entries for part in parts)]).cumsum(0).tolist()
        offsets = [part.row_offsets[:-1] + start for part, start in zip(parts, starts, strict=False)]
        end = parts[-1].row_offsets[-1:] + starts[-2]
        return cls(
            torch.cat([*offsets, end]),
            torch.cat([part.neuron_ids for part in parts]),
            torch.cat([part.values for part in parts]),
            (sum(part.n_rows for part in parts), parts[0].n_latents),
        )

    @property
    def n_rows(self) -> int:
        """Number of rows (activations that were encoded)."""
        return self.shape[0]

    @property
    def n_latents(self) -> int:
        """Number of neurons of the SAE."""
        return self.shape[1]

    @property
    def n_entries(self) -> int:
        """Number of listed entries; a listed entry may be zero."""
        return self.neuron_ids.numel()

    @cached_property
    def row_ids(self) -> Int64[Tensor, " {self.n_entries}"]:
        """[n_entries] int64, the row of each entry."""
        counts = self.row_offsets.diff()
        rows = torch.arange(self.n_rows, device=counts.device)
        return rows.repeat_interleave(counts, output_size=self.n_entries)

    @cached_property
    def neuron_order(self) -> NeuronOrder:
        """The entries sorted by neuron (stable, so rows ascend within a neuron); computed once per pattern."""
        # A narrow integer makes the sort several times faster, and it is the cost of the transposed products.
        narrow = torch.int16 if self.n_latents <= torch.iinfo(torch.int16).max else torch.int32
        sorted_ids, entries = self.neuron_ids.to(narrow).sort(stable=True)
        # Not a bincount: on CUDA it would wait for the device.
        neurons = torch.arange(self.n_latents + 1, device=sorted_ids.device, dtype=torch.int32)
        offsets = torch.searchsorted(sorted_ids.to(torch.int32), neurons)
        return NeuronOrder(offsets, self.row_ids.index_select(0, entries), entries)

    def per_neuron(self, vector: Shaped[Tensor, " {self.n_latents}"]) -> Shaped[Tensor, " {self.n_entries}"]:
        """Returns a value per neuron [n_latents] at every entry [n_entries], differentiable in the vector."""
        return vector.index_select(0, self.neuron_ids)

    def with_values(self, values: Shaped[Tensor, " {self.n_entries}"]) -> "SparseLatents":
        """Returns the same pattern with other values [n_entries]; what was derived from the pattern is kept."""
        other = SparseLatents(self.row_offsets, self.neuron_ids, values, self.shape)
        for name in ("row_ids", "neuron_order"):
            if name in self.__dict__:
                other.__dict__[name] = self.__dict__[name]
        return other

    def where(self, kept: Bool[Tensor, " {self.n_entries}"]) -> "SparseLatents":
        """Returns the entries of a mask."""
        entries = kept.nonzero().squeeze(1)
        neuron_ids, values = (one.index_select(0, entries) for one in (self.neuron_ids, self.values))
        return SparseLatents(torch.searchsorted(entries, self.row_offsets), neuron_ids, values, self.shape)

    def detach(self) -> "SparseLatents":
        """Returns the same latents without a gradient."""
        return self.with_values(self.values.detach())

    def to(self, device: torch.device | str) -> "SparseLatents":
        """Returns the latents on a device."""
        row_offsets, neuron_ids, values = (t.to(device) for t in (self.row_offsets, self.neuron_ids, self.values))
        return SparseLatents(row_offsets, neuron_ids, values, self.shape)

    def to_dense(self) -> Shaped[Tensor, "{self.n_rows} {self.n_latents}"]:
        """Returns dense latents [n_rows, n_latents]; differentiable in the values."""
        flat_ids = self.row_ids * self.n_latents + self.neuron_ids
        dense = self.values.new_zeros(self.n_rows * self.n_latents)
        return dense.index_put((flat_ids,), self.values).view(self.shape)

    def rows(self, start: int, stop: int) -> "SparseLatents":
        """Returns the rows `start:stop` (views of the entries).

        Raises:
            ValueError: when they are not among the rows.
        """
        if not 0 <= start <= stop <= self.n_rows:
            raise ValueError(f"Expected rows within 0:{self.n_rows}, got {start}:{stop}.")
        offsets = self.row_offsets[start : stop + 1]
        entries = slice(int(offsets[0]), int(offsets[-1]))
        return SparseLatents(
            offsets - offsets[0], self.neuron_ids[entries], self.values[entries], (stop - start, self.n_latents)
        )

    def by_groups(self, starts: Sequence[int]) -> "SparseLatents":
        """Cuts each row into one row per group of consecutive neurons; the entries are shared, not copied.

        Args:
            starts: ascending first neurons of the groups; the first is 0.

        Returns:
            Latents [n_rows * n_groups, n_latents]; row `i * n_groups + g` holds the entries of group g in row i.
        """
        device = self.neuron_ids.device
        rows = torch.arange(self.n_rows, device=device).unsqueeze(1) * self.n_latents
        bounds = (rows + torch.tensor(starts, device=device)).reshape(-1)
        offsets = torch.searchsorted(self.row_ids * self.n_latents + self.neuron_ids, bounds)
        shape = (self.n_rows * len(starts), self.n_latents)
        return SparseLatents(torch.cat([offsets, self.row_offsets[-1:]]), self.neuron_ids, self.values, shape)

    def max_over_rows(self) -> Shaped[Tensor, " {self.n_latents}"]:
        """Returns each neuron's largest value [n_latents], 0 where it is silent (latents are not negative)."""
        silent = self.values.new_zeros(self.n_latents)
        return silent.scatter_reduce(0, self.neuron_ids.long(), self.values, "amax", include_self=True)

    def columns(
        self, neuron_ids: Sequence[int] | Int[Tensor, " n_asked"]
    ) -> Shaped[Tensor, "{self.n_rows} {len(neuron_ids)}"]:
        """Returns the values of some neurons, dense [n_rows, len(neuron_ids)], in the order asked for.

        Raises:
            ValueError: when a neuron does not exist.
        """
        wanted = torch.as_tensor(neuron_ids, dtype=torch.int64, device=self.neuron_ids.device)
        if wanted.numel() and not 0 <= int(wanted.min()) <= int(wanted.max()) < self.n_latents:
            raise ValueError(f"Expected neuron ids within 0:{self.n_latents}, got {wanted.tolist()}.")
        distinct, places = wanted.unique(return_inverse=True)
        place_of = wanted.new_full((self.n_latents,), -1)
        place_of[distinct] = torch.arange(len(distinct), device=wanted.device)
        places_of_entries = place_of[self.neuron_ids.long()]
        hits = (places_of_entries >= 0).nonzero().squeeze(1)
        dense = self.values.new_zeros(self.n_rows, len(distinct))
        dense[self.row_ids[hits], places_of_entries[hits]] = self.values[hits]
        return dense[:, places]
