"""Sums over items that give the statistics of neurons, of classes and of cases, one gathered piece after the other."""

import numpy as np
from scipy.sparse import csr_matrix

from src.analysis.class_statistics import ClassStatistics
from src.analysis.item_latents import ItemLatents, segments

_PENDING_ENTRIES = 1 << 22


class NeuronSums:
    """What is known of each neuron over all rows and items.

    Attributes:
        n_rows: all rows that were seen.
        n_items: all items that were seen.
        active_rows: [n_latents] int64, rows above 0.
        active_items: [n_latents] int64, items with such a row.
        sums: [n_latents] float64, over all rows.
        item_means: [n_latents] float64, the sum over items of the item's mean over its rows.
        maxima: [n_latents] float32, 0 where a neuron never fires.
    """

    def __init__(self, n_latents: int) -> None:
        self.n_rows = self.n_items = 0
        self.active_rows, self.active_items = np.zeros(n_latents, np.int64), np.zeros(n_latents, np.int64)
        self.sums, self.item_means = np.zeros(n_latents), np.zeros(n_latents)
        self.maxima = np.zeros(n_latents, np.float32)

    def update(self, found: ItemLatents) -> None:
        """Adds items."""
        self.n_rows += int(found.n_rows.sum())
        self.n_items += len(found.positions)
        np.add.at(self.active_rows, found.neuron_ids, found.n_active)
        np.add.at(self.active_items, found.neuron_ids, 1)
        np.add.at(self.sums, found.neuron_ids, found.sums)
        np.add.at(self.item_means, found.neuron_ids, found.means)
        np.maximum.at(self.maxima, found.neuron_ids, found.maxima)


class ClassSums:
    """Sums over the items of classes, or of any few groups of items.

    Attributes:
        n_items: [n_groups] int64.
        n_rows: [n_groups] int64.
        means: [n_groups, n_latents] float64, the sum over items of the item's mean over its rows.
        items_above: [n_groups, n_latents] int64, items with at least one row above the threshold.
        rows_above: [n_groups, n_latents] int64, rows above the threshold.

    Args:
        group_of_item: [all items] the group of each item by its position, -1 of none.
        n_groups: their number.
        n_latents: of the SAE.
    """

    def __init__(self, group_of_item: np.ndarray, n_groups: int, n_latents: int) -> None:
        self._group_of_item = group_of_item
        shape = (n_groups, n_latents)
        self.n_items, self.n_rows = np.zeros(n_groups, np.int64), np.zeros(n_groups, np.int64)
        self.means = np.zeros(shape)
        self.items_above, self.rows_above = np.zeros(shape, np.int64), np.zeros(shape, np.int64)

    def update(self, found: ItemLatents) -> None:
        """Adds items."""
        groups = self._group_of_item[found.positions]
        known = groups >= 0
        np.add.at(self.n_items, groups[known], 1)
        np.add.at(self.n_rows, groups[known], found.n_rows[known])
        of_entries = groups[found.items]
        kept = np.flatnonzero(of_entries >= 0)
        places = of_entries[kept] * self.means.shape[1] + found.neuron_ids[kept]
        n_above = found.n_above[kept]
        np.add.at(self.means.reshape(-1), places, found.means[kept])
        np.add.at(self.rows_above.reshape(-1), places, n_above)
        np.add.at(self.items_above.reshape(-1), places, (n_above > 0).astype(np.int64))

    def statistics(self, classes: tuple[str, ...], groups: np.ndarray, counts_rows: bool = False) -> ClassStatistics:
        """Returns the statistics of classes, each made of one group or of several.

        Args:
            classes: class names.
            groups: [n_classes, n] the groups of each class.
            counts_rows: whether rows are counted and not items, as PatchSAE does.
        """
        n_items = self.n_items[groups].sum(axis=1)
        with np.errstate(invalid="ignore"):  # the mean of no items is NaN
            means = self.means[groups].sum(axis=1) / n_items[:, None]
        counts = (self.rows_above if counts_rows else self.items_above)[groups].sum(axis=1)
        return ClassStatistics(classes, n_items, means, counts)


class CaseSums:
    """Sums over the items of cases, or of any many groups of items: sparse, because most neurons are silent in most.

    Attributes:
        n_items: [n_cases] int64.
        n_latents: of the SAE.

    Args:
        case_of_item: [all items] the case of each item by its position, -1 of none.
        n_cases: their number.
        n_latents: of the SAE.
    """

    def __init__(self, case_of_item: np.ndarray, n_cases: int, n_latents: int) -> None:
        self._case_of_item, self._shape, self.n_latents = case_of_item, (n_cases, n_latents), n_latents
        self.n_items = np.zeros(n_cases, np.int64)
        # Where each entry belongs (case * n_latents + neuron), and its sums: item means, items and rows above.
        dtypes = (np.int64, np.float64, np.int32, np.int32)
        self._entries = [np.empty(0, dtype) for dtype in dtypes]
        self._pending: list[tuple[np.ndarray, ...]] = []
        self._n_pending = 0

    def update(self, found: ItemLatents) -> None:
        """Adds items."""
        cases = self._case_of_item[found.positions]
        np.add.at(self.n_items, cases[cases >= 0], 1)
        of_entries = cases[found.items]
        kept = np.flatnonzero(of_entries >= 0)
        places = of_entries[kept] * self._shape[1] + found.neuron_ids[kept]
        n_above = found.n_above[kept].astype(np.int32)
        self._pending.append((places, found.means[kept], (n_above > 0).astype(np.int32), n_above))
        self._n_pending += len(places)
        # Merged when as much again has come, so that each entry is sorted a few times only.
        if self._n_pending > max(_PENDING_ENTRIES, len(self._entries[0])):
            self._merge()

    def means(self) -> csr_matrix:
        """Returns the mean over a case's items of the item's mean over its rows: [n_cases, n_latents] float64."""
        return self._matrix(1, self.n_items)

    def item_shares(self) -> csr_matrix:
        """Returns the share of a case's items with a row above the threshold: [n_cases, n_latents] float64."""
        return self._matrix(2, self.n_items)

    def rows_above(self) -> csr_matrix:
        """Returns the rows of a case above the threshold: [n_cases, n_latents] int64."""
        return self._matrix(3, None)

    def _merge(self) -> None:
        pending = [list(parts) for parts in zip(*self._pending, strict=True)]
        self._pending, self._n_pending = [], 0
        order = starts = np.empty(0, np.int64)
        for index, parts in enumerate(pending):  # one after the other: they are what takes memory
            values = np.concatenate([self._entries[index], *parts])
            parts.clear()
            if index == 0:
                order, starts = segments(values)
                self._entries[0] = values[order[starts]]
            elif len(order):
                self._entries[index] = np.add.reduceat(values[order], starts, dtype=values.dtype)

    def _matrix(self, column: int, divided_by: np.ndarray | None) -> csr_matrix:
        if self._pending:
            self._merge()
        cases, neuron_ids = np.divmod(self._entries[0], self._shape[1])
        values = self._entries[column]
        if divided_by is not None:
            values = values / divided_by[cases]
        matrix = csr_matrix((values, (cases, neuron_ids)), shape=self._shape)
        matrix.eliminate_zeros()
        return matrix
