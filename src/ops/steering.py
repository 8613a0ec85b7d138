"""Edits of SAE latents: which neurons are changed, and what their latents become."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from src.ops.shapes import Atoms, PerNeuron
from src.ops.sparse_latents import SparseLatents

Neurons = Sequence[int] | Int[Tensor, "..."]
"""Neuron ids, in any order."""

NO_DONORS = "Expected latents of other items for an edit that resamples, got none: give donors."


@dataclass(frozen=True, eq=False)
class Edit:
    """What the latents of some neurons become, in every row; those of all others stay as they are.

    A latent f of a changed neuron j becomes `factor * f + offset[j]`, and with `resamples` the latent that the same
    neuron has in a row of another item is added. An edit is affine per neuron: what it does to decoded rows is a sparse
    product and one constant vector, `offset @ W_dec`, so that no dense latents are needed.

    Attributes:
        changed: [n_latents] bool.
        factor: what changed latents are multiplied by.
        offset: [n_latents], 0 where nothing is changed; None: 0 everywhere.
        resamples: whether changed latents come from donors.
    """

    changed: Bool[Tensor, "..."]
    factor: float = 0.0
    offset: Float[Tensor, "..."] | None = None
    resamples: bool = False

    @property
    def key(self) -> tuple[bytes, float, bytes, bool]:
        """Equal for edits that do the same."""
        if not bool(self.changed.any()):
            return b"", 1.0, b"", False
        offset = b"" if self.offset is None else self.offset.cpu().numpy().tobytes()
        return self.changed.cpu().numpy().tobytes(), self.factor, offset, self.resamples

    def to(self, device: torch.device | str) -> "Edit":
        """Returns the edit on a device."""
        offset = None if self.offset is None else self.offset.to(device)
        return Edit(self.changed.to(device), self.factor, offset, self.resamples)

    def touches(self, latents: SparseLatents) -> Bool[Tensor, " {latents.n_entries}"]:
        """Returns which entries of latents are of changed neurons: bool [n_entries]."""
        return self.changed[latents.neuron_ids.long()]


def keep(neuron_ids: Neurons, n_latents: int, means: PerNeuron | None = None, resamples: bool = False) -> Edit:
    """Returns the edit that takes all neurons away but some.

    Args:
        neuron_ids: the neurons that stay.
        n_latents: of the SAE.
        means: [n_latents], what each neuron that is taken away becomes, its mean over train rows; None: zero, which is
            the published way (PatchSAE, H. Lim et al., arXiv 2412.05276; Mammo-SAE, K. Nakka, arXiv 2507.15227).
        resamples: put another item's latents where the others were, and not `means`.

    Raises:
        ValueError: when a neuron does not exist.
    """
    return _take_away(~neuron_mask(neuron_ids, n_latents), means, resamples)


def remove(neuron_ids: Neurons, n_latents: int, means: PerNeuron | None = None, resamples: bool = False) -> Edit:
    """Returns the edit that takes some neurons away; see `keep`."""
    return _take_away(neuron_mask(neuron_ids, n_latents), means, resamples)


def scale(neuron_ids: Neurons, n_latents: int, factor: float) -> Edit:
    """Returns the edit that multiplies the latents of some neurons; raises ValueError as `keep`."""
    return Edit(neuron_mask(neuron_ids, n_latents), factor)


def set_to(neuron_ids: Neurons, n_latents: int, values: PerNeuron) -> Edit:
    """Returns the edit that sets some neurons to their entries of `values` [n_latents] in every row; see `keep`."""
    return _take_away(neuron_mask(neuron_ids, n_latents), values)


def add(neuron_ids: Neurons, n_latents: int, values: PerNeuron) -> Edit:
    """Returns the edit that adds entries of `values` [n_latents] to some neurons in every row; see `keep`."""
    changed = neuron_mask(neuron_ids, n_latents)
    return Edit(changed, 1.0, values * changed)


def neuron_mask(neuron_ids: Neurons, n_latents: int) -> Bool[Tensor, " {n_latents}"]:
    """Returns bool [n_latents], true at some neurons.

    Raises:
        ValueError: when a neuron does not exist.
    """
    ids = torch.as_tensor(neuron_ids, dtype=torch.int64)
    if wrong := ids[(ids < 0) | (ids >= n_latents)].tolist():
        raise ValueError(f"Expected neurons within 0:{n_latents}, got {wrong[0]}: choose neurons of this SAE.")
    mask = torch.zeros(n_latents, dtype=torch.bool)
    mask[ids] = True
    return mask


def decoded_offsets(edits: Sequence[Edit], atoms: Atoms) -> Float[Tensor, "{len(edits)} d_in"]:
    """Returns the constant vector `offset @ atoms` [n_edits, d_in] of edits that have an offset."""
    return torch.stack([edit.offset.to(atoms) for edit in edits if edit.offset is not None]) @ atoms


def edit_dense(
    latents: Float[Tensor, "n_rows n"], edit: Edit, neuron_ids: Neurons | None = None, donors: Tensor | None = None
) -> Float[Tensor, "n_rows n"]:
    """Returns edited dense latents [n_rows, n].

    Args:
        latents: [n_rows, n], of all neurons or of some.
        edit: the edit.
        neuron_ids: the neurons that the columns are of; None: all.
        donors: latents [n_rows, n] of other items, for edits that resample.
    """
    columns = slice(None) if neuron_ids is None else torch.as_tensor(neuron_ids, device=latents.device)
    edited = latents * edit.factor
    if edit.offset is not None:
        edited = edited + edit.offset[columns]
    if edit.resamples:
        if donors is None:
            raise ValueError(NO_DONORS)
        edited = edited + donors
    return torch.where(edit.changed[columns], edited, latents)


def _take_away(changed: Tensor, means: Tensor | None, resamples: bool = False) -> Edit:
    return Edit(changed, 0.0, None if means is None or resamples else means * changed, resamples)
