"""A trained classifier of bags with all that it was trained behind: raw bags in, probabilities out."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from src.models.mil.base import Labels, MILModel, Pooled, Rows, bag_slices, dense_rows
from src.ops.sparse_latents import SparseLatents


class BagClassifier(nn.Module):
    """Shifts and scales the values of a bag as in training, and classifies it.

    Args:
        model: the MIL model.
        classes: names, by the index of their logit.
        input_name: what bags hold: `activations`, or latents of all neurons or of some.
        neuron_ids: the neurons that bags hold, in order; None for activations and for all neurons.
    """

    input_mean: Float[Tensor, " d_in"]
    input_scale: Float[Tensor, " d_in"]
    input_factor: Float[Tensor, " d_in"]

    def __init__(
        self, model: MILModel, classes: Sequence[str], input_name: str, neuron_ids: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.classes = tuple(classes)
        self.input_name = input_name
        self.neuron_ids = None if neuron_ids is None else tuple(int(neuron_id) for neuron_id in neuron_ids)
        self.register_buffer("input_mean", torch.zeros(model.d_in))
        self.register_buffer("input_scale", torch.ones(model.d_in))
        self.register_buffer("input_factor", torch.ones(model.d_in))

    def prepare(self, bag: Float[Tensor, "*bags d_in"]) -> Float[Tensor, "*bags d_in"]:
        """Returns bags [..., d_in] on the scale that the model eats: `(bag - mean) / scale * factor`."""
        return (bag - self.input_mean) / self.input_scale * self.input_factor

    def prepare_latents(self, bag: SparseLatents) -> SparseLatents:
        """Returns sparse latents, whose mean is 0, on the scale that the model eats."""
        return bag.with_values(bag.values * bag.per_neuron(self.input_factor / self.input_scale))

    def forward(
        self, bag: Float[Tensor, "n_rows d_in"]
    ) -> tuple[Float[Tensor, " n_classes"], Float[Tensor, "n_branches n_rows"] | None]:
        """Classifies one bag [n_rows, d_in].

        Returns:
            Probabilities [n_classes], and attention [n_branches, n_rows] of models that have it.
        """
        mask = torch.ones(1, len(bag), dtype=torch.bool, device=bag.device)
        output = self.model(self.prepare(bag)[None], mask)
        return output.logits[0].softmax(-1), None if output.attention is None else output.attention[0]


class MaximaRegression(MILModel):
    """Logistic regression on the maxima of a bag's columns, as scikit-learn fits it; in float64.

    Args:
        d_in: columns.
        n_classes: number of classes.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, d_in: int, n_classes: int) -> None:
        super().__init__(d_in, n_classes)
        n_rows = 1 if n_classes == 2 else n_classes
        for name, shape in (("mean", d_in), ("scale", d_in), ("weight", (n_rows, d_in)), ("bias", n_rows)):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    def pool(self, rows: Rows, lengths: Sequence[int], labels: Labels | None) -> Pooled:  # noqa: ARG002
        """Classifies bags; see `MILModel.pool`."""
        rows = dense_rows(rows)
        maxima = torch.stack([rows[bag].amax(0) for bag in bag_slices(lengths)])
        return Pooled(self._logits(maxima), instance_logits=self._logits(rows))

    def _logits(self, values: Tensor) -> Tensor:
        scores = (values.double() - self.mean) / self.scale @ self.weight.T + self.bias
        return torch.cat([torch.zeros_like(scores), scores], -1) if self.n_classes == 2 else scores
