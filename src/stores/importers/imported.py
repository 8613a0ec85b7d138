"""What an importer hands over, and the SAE that is made of it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.models.saes.base import SAE
from src.models.saes.gated import Gated
from src.models.saes.jumprelu import JumpReLU
from src.models.saes.relu_l1 import ReLUL1


@dataclass(frozen=True)
class ImportedSAE:
    """A foreign SAE in our names and orientation, not built yet.

    Attributes:
        sae_class: our class that encodes as the file's system does at inference.
        arguments: its constructor's arguments that inference depends on, but for `d_in` and `n_latents`, which W_enc
            gives unless they are here; those of training are our defaults.
        state: its parameters and the buffers that the file determines, float32.
        facts: what the file says, as JSON values.
        folded: what was folded into the weights, a sentence each.
        assumed: what the file does not say or is known to differ, a sentence each.
        recorded_fvu: the fraction of variance unexplained that the file records, None when it does not.
    """

    sae_class: type[SAE]
    arguments: dict[str, Any]
    state: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)
    folded: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    recorded_fvu: float | None = None


def build_sae(imported: ImportedSAE, source: Path) -> SAE:
    """Builds the SAE, in evaluation mode on the CPU.

    Args:
        imported: what to build.
        source: the file it came from, for messages.

    Raises:
        ValueError: when a parameter is missing or unknown, or a shape is another.
    """
    sizes: dict[str, Any] = dict(zip(("n_latents", "d_in"), imported.state["W_enc"].shape, strict=True))
    sae = imported.sae_class(**sizes | imported.arguments)
    expected = sae.state_dict()
    parameters = {name for name, _ in sae.named_parameters()}
    if not parameters <= set(imported.state) <= set(expected):
        raise ValueError(
            f"Expected {sorted(parameters)} for {type(sae).__name__} from {source}, got {sorted(imported.state)}."
        )
    for name, value in imported.state.items():
        if value.shape != expected[name].shape:
            raise ValueError(
                f"Expected {name} of shape {tuple(expected[name].shape)} for {type(sae).__name__} from {source}, got "
                f"{tuple(value.shape)}."
            )
    sae.load_state_dict(expected | imported.state)
    return sae.eval()


def scale_to_unit_atoms(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a state with unit-norm atoms and latents that are longer by as much, so that reconstructions stay.

    Works where latents scale with the encoder's rows and bias: all but what compares neurons with each other or with
    one threshold. A neuron whose atom is zero gets latents of zero.
    """
    norms = torch.linalg.vector_norm(state["W_dec"], dim=1)
    longer = {name: state[name] * norms for name in ("b_enc", "b_mag") if name in state}
    longer["W_enc"] = state["W_enc"] * norms[:, None]
    return {**state, **longer, "W_dec": state["W_dec"] / torch.where(norms > 0, norms, 1.0)[:, None]}


def with_unit_atoms(imported: ImportedSAE) -> ImportedSAE:
    """Folds atom norms into the encoder, as dictionary_learning's loader does with ReLU SAEs.

    Raises:
        ValueError: when that would change which neurons are kept.
    """
    if not issubclass(imported.sae_class, ReLUL1 | JumpReLU | Gated):
        raise ValueError(
            f"Expected convert.unit_norm_atoms=false with {imported.sae_class.__name__}, which compares latents of "
            "different neurons: scaling them changes which are kept."
        )
    state = scale_to_unit_atoms(imported.state)
    if "threshold" in state:
        state["threshold"] = state["threshold"] * torch.linalg.vector_norm(imported.state["W_dec"], dim=1)
    note = "Atoms were scaled to unit norm and the encoder by as much (convert.unit_norm_atoms)."
    return dataclasses.replace(imported, state=state, folded=(*imported.folded, note))
