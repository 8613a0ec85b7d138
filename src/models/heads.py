"""Heads: what turns the rows of a layer, as they are or edited, into logits of classes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from src.models.backbones.base import Backbone
from src.models.mil.classifier import BagClassifier
from src.models.probes import Probe
from src.models.zero_shot import ZeroShot


class Head(nn.Module, ABC):
    """The protocol of every head; frozen and in evaluation mode.

    Attributes:
        classes: names, by the index of their logit.
        eats: `activations` of a layer, or dense `latents`.
        neuron_ids: the neurons whose latents it eats, in order; None for activations and for all neurons.
        is_multilabel: whether classes exclude each other (softmax) or each is there or not (sigmoid).

    Args:
        classes: see above.
        eats: see above.
        neuron_ids: see above.
        is_multilabel: see above.
    """

    def __init__(
        self, classes: Sequence[str], eats: str, neuron_ids: Sequence[int] | None = None, is_multilabel: bool = False
    ) -> None:
        super().__init__()
        self.classes, self.eats, self.is_multilabel = tuple(classes), eats, is_multilabel
        self.neuron_ids = None if neuron_ids is None else tuple(neuron_ids)

    @abstractmethod
    def forward(self, rows: Float[Tensor, "batch n_rows d"]) -> Float[Tensor, "batch n_classes"]:
        """Returns logits [batch, n_classes] of all rows of each item at the edited layer [batch, n_rows, d]."""

    def probabilities(self, logits: Float[Tensor, "batch n_classes"]) -> Float[Tensor, "batch n_classes"]:
        """Returns probabilities of logits [batch, n_classes]: of exclusive classes they sum to 1."""
        return logits.sigmoid() if self.is_multilabel else logits.softmax(-1)


class TailHead(Head):
    """The rest of the backbone behind a layer, and a classifier of what the backbone gives.

    Args:
        backbone: it.
        layer: where the rows, `all` tokens of it, are from; as `Backbone.resolve` takes it.
        then: what classifies the features: a probe of them or zero-shot texts; None where the backbone itself ends in
            logits.
        classes: names of the backbone's own logits; of `then` they are known.

    Raises:
        ValueError: when the backbone's features or logits do not fit.
    """

    def __init__(
        self,
        backbone: Backbone,
        layer: int | str | None,
        then: Probe | ZeroShot | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        if then is None and classes is None:
            raise ValueError(
                "Expected the names of the backbone's own classes, or a head on its features, got neither."
            )
        known = then.classes if then is not None else tuple(classes or ())
        super().__init__(known, "activations", is_multilabel=isinstance(then, Probe) and then.is_multilabel)
        self.backbone, self.layer, self.then = backbone, backbone.resolve(layer), then
        projects = "projected" if backbone.projects else "pooled"
        width, needed = backbone.d_in("output", projects), len(known) if then is None else then.d_in
        if width != needed:
            what = "logits of the classes" if then is None else "features that the head takes"
            raise ValueError(
                f"Expected a backbone that gives {needed} {what}, got {width}: give the head of this backbone, or the "
                "backbone of this head (backbone.model_args={num_classes: <n>} makes timm's own classifier)."
            )
        self.eval()

    def forward(self, rows: Float[Tensor, "batch n_rows d"]) -> Float[Tensor, "batch n_classes"]:
        """See `Head.forward`."""
        features = self.backbone.tail(self.layer, rows)
        return features if self.then is None else self.then(features)


class PooledProbe(Head):
    """A probe of the layer itself: pools the rows as it was trained to, and classifies.

    Args:
        probe: on activations, latents or neurons.
    """

    def __init__(self, probe: Probe) -> None:
        eats = "activations" if probe.input_name == "activations" else "latents"
        super().__init__(probe.classes, eats, probe.neuron_ids, probe.is_multilabel)
        self.probe = probe
        self.eval()

    def forward(self, rows: Float[Tensor, "batch n_rows d"]) -> Float[Tensor, "batch n_classes"]:
        """See `Head.forward`."""
        return self.probe.logits_of_rows(rows)


class BagHead(Head):
    """A MIL classifier; a bag is an item.

    Args:
        classifier: on activations, latents or some neurons.
    """

    def __init__(self, classifier: BagClassifier) -> None:
        eats = "activations" if classifier.input_name == "activations" else "latents"
        super().__init__(classifier.classes, eats, classifier.neuron_ids)
        self.classifier = classifier
        self.eval()

    def forward(self, rows: Float[Tensor, "batch n_rows d"]) -> Float[Tensor, "batch n_classes"]:
        """See `Head.forward`."""
        mask = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
        return self.classifier.model(self.classifier.prepare(rows), mask).logits.to(rows.dtype)
