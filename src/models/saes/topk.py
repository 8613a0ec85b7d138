"""TopK: keeps the k largest pre-latents of each row."""

from typing import Any, Literal

from torch import Tensor

from src.models.saes.k_sparse import KSparse
from src.models.saes.options import one_of
from src.ops.encoder_product import EncoderProduct
from src.ops.sparse_latents import SparseLatents

Inference = Literal["topk", "threshold"]


class TopK(KSparse):
    """TopK SAE (Gao et al. 2024, arXiv 2406.04093), with the ReLU of the authors' code after the selection.

    Fewer than k latents are kept where fewer are positive. A batch's rows do not interact, so inference chooses as
    training does.

    Args:
        d_in: dimension of the activations.
        n_latents: number of neurons; `expansion * d_in` when None.
        expansion: neurons per input dimension.
        k: latents kept per row.
        inference: "topk" keeps k per row as training does; "threshold" keeps what exceeds `threshold`
            (dictionary_learning's alternative), so that a row may have more or fewer.
        **options: of `KSparse`.
    """

    def __init__(
        self,
        d_in: int,
        n_latents: int | None = None,
        expansion: float = 4,
        k: int = 16,
        *,
        inference: Inference = "topk",
        **options: Any,
    ) -> None:
        super().__init__(d_in, n_latents, expansion, k, **options)
        self.inference = one_of("inference", inference, Inference)

    @property
    def saelens_architecture(self) -> str:
        """SAELens's "topk" keeps k per row; what exceeds one threshold is its "jumprelu"."""
        return "topk" if self.inference == "topk" else "jumprelu"

    def saelens_settings(self) -> dict[str, Any]:
        """Returns k; see `SAECore.saelens_settings`."""
        return {"k": self.k, "rescale_acts_by_decoder_norm": False} if self.inference == "topk" else {}

    def saelens_parameters(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the weights, without a threshold for "topk"; see `SAECore.saelens_parameters`."""
        return weights if self.inference == "topk" else super().saelens_parameters(weights)

    def select(self, product: EncoderProduct, k: int) -> SparseLatents:
        """Keeps the k largest of each row; see `KSparse.select`."""
        return product.largest_per_row(k)

    def select_inference(self, product: EncoderProduct) -> SparseLatents:
        """Chooses what inference keeps, by `inference`."""
        if self.inference == "topk":
            return product.largest_per_row(self.k)
        return super().select_inference(product)
