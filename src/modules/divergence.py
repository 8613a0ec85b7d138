"""Training that leaves the finite numbers: how it is found, and what is said of it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from src.ops.processes import all_max

SAE_REMEDY = (
    "Try a lower train.lr, train.max_grad_norm=1, and look at the features: few that are far larger than the others "
    "call for dataset.standardize=true, values beyond 1e18 are likely an error in the file."
)
MIL_REMEDY = "Try a lower mil.lr, mil.scale_inputs=true, and look at the features for values far above the others."


def first_not_finite(losses: Sequence[Tensor]) -> int | None:
    """Returns the position of the first loss (0-d) that is infinite or NaN; None when all are finite.

    One exchange with the device for all of them.
    """
    is_finite = torch.stack([loss.detach() for loss in losses]).isfinite() if losses else torch.ones(0)
    return None if bool(is_finite.all()) else int((~is_finite).nonzero()[0])


def require_finite_state(checkpoint: Mapping[str, Any], where: str, remedy: str = SAE_REMEDY) -> None:
    """Refuses a state of training that holds an infinite value or NaN.

    Args:
        checkpoint: a module's `state_dict`, and `optimizer_states` when there are some.
        where: what is looked at, for the message: "weights after optimizer step 7".
        remedy: what to do.

    Raises:
        ValueError: naming the tensors.
    """
    spoilt = [name for name, value in _tensors(checkpoint) if value.is_floating_point() and not value.isfinite().all()]
    if spoilt:
        more = f" and {len(spoilt) - 3} more" if len(spoilt) > 3 else ""
        raise ValueError(
            f"Expected finite {where}, got infinite values or NaN in {', '.join(spoilt[:3])}{more}: training "
            f"diverged. {remedy}"
        )


def describe_extreme(batch: Tensor) -> str:
    """Says how large the values of a batch [..., d_in] are over all processes, and in which feature: a sentence."""
    rows = batch.detach().reshape(-1, batch.shape[-1]).abs()
    largest = all_max(rows.amax(0) if len(rows) else rows.new_zeros(rows.shape[1]))
    feature = int(largest.argmax())
    return f"The activations of that step reach {float(largest[feature]):.3g}, in feature {feature} of {len(largest)}."


def _tensors(checkpoint: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    yield from ((name, value) for name, value in checkpoint["state_dict"].items() if isinstance(value, Tensor))
    for optimizer in checkpoint.get("optimizer_states", ()):
        for number, moments in optimizer["state"].items():
            for name, value in moments.items():
                if isinstance(value, Tensor):
                    yield f"the optimizer's {name} of parameter {number}", value
