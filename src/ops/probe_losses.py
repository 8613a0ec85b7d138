"""What probes minimise: the weighted cross-entropy of exclusive classes, or of labels that are there or not."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor


def probe_loss(
    logits: Float[Tensor, "batch n_classes"],
    targets: Shaped[Tensor, "batch ..."],
    weights: Float[Tensor, "n_classes ..."] | None = None,
) -> Float[Tensor, ""]:
    """Returns the mean loss of a batch: 0-d.

    Args:
        logits: [batch, n_classes].
        targets: the class of each vector [batch] int64; or of labels that do not exclude each other [batch, n_classes]
            float, 1 where it is there, 0 where not, NaN where nobody knows, which is left out.
        weights: of `class_weights`; None: all 1.

    Returns:
        The mean over the batch of a vector's weighted cross-entropy, or of the sum over its known labels.
    """
    if targets.ndim == 1:
        losses = F.cross_entropy(logits, targets, reduction="none")
        return (losses if weights is None else losses * weights[targets]).mean()
    is_known = ~targets.isnan()
    there = targets.nan_to_num()
    losses = F.binary_cross_entropy_with_logits(logits, there, reduction="none") * is_known
    if weights is not None:
        losses = losses * torch.where(there > 0, weights[:, 1], weights[:, 0])
    return losses.sum(1).mean()


def class_weights(
    targets: Shaped[Tensor, "n ..."], n_classes: int, is_balanced: bool
) -> Float[Tensor, "n_classes ..."]:
    """Returns the weight of each class: [n_classes], or of labels not there and there [n_classes, 2].

    Balanced weights give every class the same total: n / (n_classes n_of_class), as scikit-learn's. A label's weights
    are divided by the share of vectors of which it is known, so that labels count alike.

    Args:
        targets: of the train vectors, as for `probe_loss`.
        n_classes: number of classes.
        is_balanced: whether rare classes count as much as frequent ones.
    """
    if targets.ndim == 1:
        counts = torch.bincount(targets, minlength=n_classes)
        return len(targets) / (n_classes * counts) if is_balanced else torch.ones(n_classes)
    counts = torch.stack([_count(targets == 0), _count(targets == 1)], dim=1)
    known = counts.sum(1, keepdim=True)
    weights = known / (2 * counts) if is_balanced else torch.ones_like(counts)
    return weights * len(targets) / known


def soft_threshold(values: Float[Tensor, "*shape"], least: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Returns values pulled towards 0 by `least`, 0 where they are smaller: the proximal step of an L1 penalty."""
    return values.sign() * (values.abs() - least).clamp(min=0)


def _count(mask: Bool[Tensor, "n n_classes"]) -> Float[Tensor, " n_classes"]:
    return mask.sum(0).float()
