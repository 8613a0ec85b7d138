"""The named tensors of a file, each taken once, so that none is lost."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Entries:
    """The named tensors of a file, taken one by one: what is left at the end would be lost.

    Args:
        source: the file, for messages.
        entries: its names and what they hold.
    """

    def __init__(self, source: Path, entries: Any) -> None:
        if not isinstance(entries, Mapping):
            raise ValueError(f"Expected named tensors in {source}, got {type(entries).__name__}.")
        self._source, self._left = source, dict(entries)

    def take(self, key: str, *shape: int | None) -> Tensor:
        """Takes a tensor as float32; None in `shape` is any length.

        Raises:
            ValueError: when it is missing, of another shape, or not finite.
        """
        if key not in self._left:
            raise ValueError(f"Expected {key} in {self._source}, got only {sorted(map(str, self._left))}.")
        value = self._left.pop(key)
        if isinstance(value, int | float):
            value = torch.tensor(value)
        if not isinstance(value, Tensor) or value.is_sparse or value.is_quantized:
            raise ValueError(f"Expected a dense tensor as {key} in {self._source}, got {type(value).__name__}.")
        if value.ndim != len(shape) or any(a not in (None, b) for a, b in zip(shape, value.shape, strict=True)):
            wanted = str(tuple("any" if length is None else length for length in shape)).replace("'", "")
            raise ValueError(f"Expected {key} of shape {wanted} in {self._source}, got {tuple(value.shape)}.")
        exact = value.detach().to(torch.float32).clone()
        if not bool(exact.isfinite().all()):
            raise ValueError(
                f"Expected finite values of {key} in {self._source}, got {int((~exact.isfinite()).sum())} that are not."
            )
        return exact

    def has(self, key: str) -> bool:
        """Whether there is one of that name that was not taken yet."""
        return key in self._left

    def value(self, key: str, default: Any = None) -> Any:
        """Takes what is no tensor; the default when it is missing."""
        return self._left.pop(key, default)

    def leave(self, *keys: str) -> None:
        """Says that entries, where they are there, have no part in inference."""
        for key in keys:
            self._left.pop(key, None)

    def finish(self) -> None:
        """Checks that nothing is left.

        Raises:
            ValueError: naming what an import would lose.
        """
        if self._left:
            raise ValueError(
                f"Expected nothing more in {self._source}, got {sorted(map(str, self._left))}: these have no place in "
                "our SAEs, and an import would lose them."
            )

    def take_linear(
        self, b_dec: str, b_enc: str = "encoder.bias", W_enc: str = "encoder.weight", W_dec: str = "decoder.weight"
    ) -> dict[str, Tensor]:
        """Takes the weights of two nn.Linear modules, [out, in], under the names given; returns as `take_weights`."""
        weight = self.take(W_enc, None, None)
        n_latents, d_in = weight.shape
        return {
            "W_enc": weight,
            "b_enc": self.take(b_enc, n_latents),
            "W_dec": self.take(W_dec, d_in, n_latents).T,
            "b_dec": self.take(b_dec, d_in),
        }

    def take_weights(self, b_enc: str = "b_enc") -> dict[str, Tensor]:
        """Takes `W_enc` [d_in, n_latents], its bias, `W_dec` [n_latents, d_in] and `b_dec`, as most systems name them.

        Args:
            b_enc: the name of the encoder's bias.

        Returns:
            Them in our names and orientation.
        """
        W_enc = self.take("W_enc", None, None)
        d_in, n_latents = W_enc.shape
        return {
            "W_enc": W_enc.T,
            "b_enc": self.take(b_enc, n_latents),
            "W_dec": self.take("W_dec", n_latents, d_in),
            "b_dec": self.take("b_dec", d_in),
        }
