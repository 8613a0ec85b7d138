"""Shapes that many signatures name."""

from collections.abc import Iterable

from jaxtyping import Float, Int64, Shaped
from torch import Tensor

Rows = Float[Tensor, "n_rows d_in"]
Batch = Float[Tensor, "*rows d_in"]
"""Rows, or image blocks [n_images, n_tokens, d_in], in which every token is a row."""
Atoms = Float[Tensor, "n_latents d_in"]
"""Encoder and decoder weights have one row per neuron."""
PreLatents = Float[Tensor, "n_rows n_latents"]
Pieces = Iterable[Float[Tensor, "_ n_latents"]]
"""Pre-latents in pieces of rows."""
PerNeuron = Float[Tensor, " n_latents"]
PerInput = Float[Tensor, " d_in"]
NeuronIds = Int64[Tensor, " n_asked"]
Columns = Float[Tensor, "n_rows n_asked"]
"""What some neurons asked for have in each row."""
Scalar = Float[Tensor, ""]
AnyShape = Shaped[Tensor, "*shape"]
