"""The options that all sparse autoencoders share, and the checks of their values."""

from typing import Any, Literal, get_args

InputNorm = Literal["none", "z_score", "layer_norm", "centre", "global_scale"]
EncoderInit = Literal["tied", "kaiming"]
BDecInit = Literal["mean", "zero", "geometric_median"]
DecoderConstraint = Literal["after_step", "before_step", "before_forward", "none"]
ErrorScale = Literal["mean", "sum", "input_norm"]
DeadUnit = Literal["batches", "tokens"]


def one_of(option: str, value: Any, allowed: Any) -> Any:
    """Returns the value of an option `sae.<option>` that must be one of a Literal's."""
    if value not in get_args(allowed):
        raise ValueError(f"Expected sae.{option} to be one of {get_args(allowed)}, got {value!r}.")
    return value


def at_least(option: str, value: Any, least: float) -> Any:
    """Returns the value of an option `sae.<option>` that must not be below `least`."""
    if value < least:
        raise ValueError(f"Expected sae.{option} of at least {least}, got {value}.")
    return value
