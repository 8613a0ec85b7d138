"""A model whose latents at one layer are edited: what all edits of a batch share is computed once."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from src.models.heads import Head
from src.models.saes.core import SAECore
from src.ops.sparse_latents import SparseLatents
from src.ops.sparse_products import decode_sparse
from src.ops.steering import NO_DONORS, Edit, decoded_offsets, edit_dense


class Steering:
    """Gives the logits of a head under many edits of the latents of its layer.

    The activations at the layer come from outside, computed once. A batch is encoded once; each distinct edit costs a
    sparse product with the entries that it changes (or leaves, where these are fewer) and one run of the head.
    Published evaluations run the whole model once an edit (PatchSAE: 21 passes a batch).

    Args:
        head: of the activations or of the latents; on the device of the SAE.
        sae: of the activations.
        edits: what is done; None: no SAE at all, the head on the activations as they are.
        keeps_error: whether what the SAE does not reconstruct, `x - decode(encode(x))`, is added to what an edit gives.
        added_constant: added to every coordinate of edited activations (of the published PatchSAE; else 0).
    """

    def __init__(
        self,
        head: Head,
        sae: SAECore,
        edits: Sequence[Edit | None],
        keeps_error: bool = True,
        added_constant: float = 0.0,
    ) -> None:
        self._head, self._sae, self._keeps_error, self._added_constant = head, sae, keeps_error, added_constant
        by_key = {None if edit is None else edit.key: edit for edit in edits}
        numbers = {key: number for number, key in enumerate(by_key)}
        self._numbers = [numbers[None if edit is None else edit.key] for edit in edits]
        self._edits = [None if edit is None else edit.to(sae.W_dec.device) for edit in by_key.values()]
        has_offset = [edit for edit in self._edits if edit is not None and edit.offset is not None]
        with torch.no_grad():
            decoded = iter(decoded_offsets(has_offset, sae.atoms) if has_offset else ())
        self._offsets = [next(decoded) if edit in has_offset else None for edit in self._edits]

    @property
    def n_distinct(self) -> int:
        """How often a batch goes through the head."""
        return len(self._edits)

    @torch.no_grad()
    def __call__(
        self, rows: Float[Tensor, "batch n_rows d_in"], donors: Float[Tensor, "batch n_rows d_in"] | None = None
    ) -> list[Tensor]:
        """Returns logits [batch, n_classes] under each edit, in their order.

        Args:
            rows: activations of all rows of each item.
            donors: those of other items, for edits that resample.

        Raises:
            ValueError: when an edit resamples and there are no donors.
        """
        given = None if donors is None else self._sae.encode(donors.flatten(0, 1))
        edited = self._edited_latents if self._head.eats == "latents" else self._edited_activations
        flat = rows.flatten(0, 1)
        logits = [self._head(values.unflatten(0, rows.shape[:2])) for values in edited(flat, given)]
        return [logits[number] for number in self._numbers]

    def _edited_latents(self, rows: Tensor, donors: SparseLatents | None) -> Iterator[Tensor]:
        """Yields what a head of latents eats under each edit: [n_rows, n], of the neurons that it eats."""
        neuron_ids = self._head.neuron_ids
        latents = _dense(self._sae.encode(rows), neuron_ids)
        given = None if donors is None else _dense(donors, neuron_ids)
        for edit in self._edits:
            yield latents if edit is None else edit_dense(latents, edit, neuron_ids, given)

    def _edited_activations(self, rows: Tensor, donors: SparseLatents | None) -> Iterator[Tensor]:
        """Yields the activations under each edit: [n_rows, d_in]."""
        sae = self._sae
        latents = sae.encode(rows)
        statistics = sae.normalize(rows)[1] if sae.normalizes_rows else None
        unit = sae.input_scale if statistics is None else statistics.scale
        whole = sae.decode(latents, statistics)
        # What is left when every latent is taken away: exactly the decoded zero where the error is dropped.
        emptied = sae.decode(latents.where(torch.zeros_like(latents.values, dtype=torch.bool)), statistics)
        if self._keeps_error:
            whole, emptied = rows, emptied + (rows - whole)
        for edit, offset in zip(self._edits, self._offsets, strict=True):
            if edit is None:
                yield rows
                continue
            is_changed = edit.touches(latents)
            if edit.factor == 0 and 2 * int(is_changed.sum()) > latents.n_entries:
                base, parts = emptied, [latents.where(~is_changed)]
            else:
                changed = latents.where(is_changed)
                base, parts = whole, [changed.with_values(changed.values * (edit.factor - 1))]
            if edit.resamples:
                if donors is None:
                    raise ValueError(NO_DONORS)
                parts.append(donors.where(edit.touches(donors)))
            edited = base + self._added_constant if offset is None else base + (offset * unit + self._added_constant)
            for part in parts:
                if part.n_entries:
                    edited.addcmul_(decode_sparse(part, sae.atoms), unit)
            yield edited


def _dense(latents: SparseLatents, neuron_ids: Sequence[int] | None) -> Tensor:
    return latents.to_dense() if neuron_ids is None else latents.columns(neuron_ids)
