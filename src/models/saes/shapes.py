"""Shapes that the methods of an SAE name, of its own sizes."""

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor

Rows = Float[Tensor, "n_rows {self.d_in}"]
Batch = Float[Tensor, "*rows {self.d_in}"]
"""Rows, or image blocks [n_images, n_tokens, d_in]."""
Atoms = Float[Tensor, "{self.n_latents} {self.d_in}"]
PreLatents = Float[Tensor, "n_rows {self.n_latents}"]
Pieces = Iterable[Float[Tensor, "_ {self.n_latents}"]]
"""Pre-latents in pieces of rows."""
PerNeuron = Float[Tensor, " {self.n_latents}"]
