"""Attention pooling that also clusters patches by their attention."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from src.models.mil.base import Labels, MILModel, Pooled, Rows, bag_slices, bag_softmax, first_layer, weighted_sums
from src.ops.dropout import hidden_units


def smooth_svm(
    scores: Float[Tensor, "n n_classes"], labels: Int64[Tensor, " n"], margin: float = 1.0, temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Returns the mean over n of `temperature * log(sum_j exp((margin [j != y] + s_j - s_y) / temperature))`.

    The smooth top-1 SVM of L. Berrada, A. Zisserman and M. P. Kumar, "Smooth loss functions for deep top-k
    classification", ICLR 2018 (their alpha and tau, both 1 in CLAM, as by default in their package). It is
    cross-entropy of scores that are the margin higher in the wrong classes. Deviation: their package takes the maximum
    in place of the log-sum-exp where the largest score exceeds the second by more than 6.9 temperatures, for
    stability, which `cross_entropy` has anyway; with these defaults and two classes both differ by less than 0.003.

    Args:
        scores: of classes.
        labels: the class of each row.
        margin: by which the label's score is to exceed the others.
        temperature: above 0; towards 0 it becomes the SVM's hinge loss.
    """
    wrong = torch.ones_like(scores).scatter(1, labels[:, None], 0)
    return temperature * F.cross_entropy((scores + margin * wrong) / temperature, labels)


_INSTANCE_LOSSES = {"cross_entropy": F.cross_entropy, "svm": smooth_svm}


class CLAM(MILModel):
    """Attention MIL whose most and least attended patches are told apart by classifiers of patches.

    Lu et al., "Data-efficient and weakly supervised computational pathology on whole-slide images", Nature Biomedical
    Engineering 2021, as CLAM's `model_clam.py` has it: size `small`, gated attention of 256 units, PyTorch's default
    start. For a bag of class c, instance classifier c learns that the `n_sampled` patches with the highest attention
    are positive and those with the lowest negative. The loss is `bag_weight` times the bags' cross-entropy and
    `1 - bag_weight` times the instance loss. Deviations: bags of fewer than `n_sampled` patches give all of them, where
    CLAM fails; `svm` is smooth everywhere, see `smooth_svm`.

    Args:
        d_in: width of a patch's vector.
        n_classes: number of classes.
        n_hidden: width of an encoded patch.
        n_attention: width of the attention network.
        dropout: share of units dropped in training, of the encoded patches and inside the attention network.
        gated: gated attention.
        branch_per_class: whether each class has attention of its own (CLAM-MB) or all share one (CLAM-SB).
        n_sampled: the patches with the highest, and with the lowest attention that the instance loss takes.
        subtyping: whether classes exclude each other, so that what other classes attend to is negative for them.
        bag_weight: of the bags' cross-entropy in the loss.
        instance_loss: `cross_entropy`, CLAM's default, or `svm`, which the command of its README sets.

    Raises:
        ValueError: when `instance_loss` is neither.
    """

    def __init__(
        self,
        d_in: int,
        n_classes: int,
        n_hidden: int = 512,
        n_attention: int = 256,
        dropout: float = 0.25,
        gated: bool = True,
        branch_per_class: bool = False,
        n_sampled: int = 8,
        subtyping: bool = False,
        bag_weight: float = 0.7,
        instance_loss: Literal["cross_entropy", "svm"] = "cross_entropy",
    ) -> None:
        super().__init__(d_in, n_classes)
        if instance_loss not in _INSTANCE_LOSSES:
            raise ValueError(f"Expected instance_loss to be {' or '.join(_INSTANCE_LOSSES)}, got {instance_loss!r}.")
        self.patch_encoder = nn.Linear(d_in, n_hidden)
        self.attention_value = nn.Linear(n_hidden, n_attention)
        self.attention_gate = nn.Linear(n_hidden, n_attention) if gated else None
        self.attention_score = nn.Linear(n_attention, n_classes if branch_per_class else 1)
        self.classifier = nn.Linear(n_hidden, n_classes)  # of CLAM-MB a row a class, each for its own branch
        self.instance_classifiers = nn.ModuleList(nn.Linear(n_hidden, 2) for _ in range(n_classes))
        self.dropout, self.branch_per_class = dropout, branch_per_class
        self.n_sampled, self.subtyping, self.bag_weight = n_sampled, subtyping, bag_weight
        self.instance_loss = instance_loss

    def pool(self, rows: Rows, lengths: Sequence[int], labels: Labels | None) -> Pooled:
        """Classifies bags; see `MILModel.pool`."""
        p = self.dropout if self.training else 0.0
        hidden = hidden_units(first_layer(self.patch_encoder, rows), "relu", p)
        scores = F.dropout(self.attention_value(hidden).tanh(), p)
        if self.attention_gate is not None:
            scores = scores * F.dropout(self.attention_gate(hidden).sigmoid(), p)
        attention = bag_softmax(self.attention_score(scores), lengths)  # [n_rows, n_branches]
        pooled = weighted_sums(attention, hidden, lengths).expand(-1, self.n_classes, -1)
        logits = torch.einsum("bch,ch->bc", pooled, self.classifier.weight) + self.classifier.bias
        losses = {}
        if labels is not None:
            bags = zip(bag_slices(lengths), labels.tolist(), strict=True)
            of_instances = [self._instance_loss(attention[bag].detach(), hidden[bag], label) for bag, label in bags]
            losses = {"instance": (1 - self.bag_weight) * torch.stack(of_instances)}
        return Pooled(logits, attention, None if self.training else self.classifier(hidden), losses)

    def _instance_loss(self, attention: Tensor, hidden: Tensor, label: int) -> Tensor:
        """Returns the instance loss of one bag: attention [n_patches, n_branches], hidden [n_patches, n_hidden]."""
        n_sampled, terms = min(self.n_sampled, len(hidden)), []
        loss = _INSTANCE_LOSSES[self.instance_loss]
        for class_, classifier in enumerate(self.instance_classifiers):
            weights = attention[:, class_ if self.branch_per_class else 0]
            top = weights.topk(n_sampled).indices
            if class_ == label:
                bottom = weights.topk(n_sampled, largest=False).indices
                targets = torch.arange(2 * n_sampled, device=hidden.device) < n_sampled
                terms.append(loss(classifier(hidden[torch.cat([top, bottom])]), targets.long()))
            elif self.subtyping:
                terms.append(loss(classifier(hidden[top]), torch.zeros_like(top)))
        return torch.stack(terms).sum() / (self.n_classes if self.subtyping else 1)
