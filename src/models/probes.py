"""Classifiers of one vector an item, linear or with one hidden layer, and how an item's rows become that vector."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

POOLS = ("mean", "max", "cls", "none")
INPUTS = ("activations", "latents", "neurons")


def pool_rows(rows: Float[Tensor, "batch n_rows d"], pool: str) -> Float[Tensor, "batch n_vectors d"]:
    """Returns what a probe sees of items of equally many rows: one vector, or with `none` every row.

    Args:
        rows: all rows of each item, [batch, n_rows, d].
        pool: `mean` or `max` over the rows, `cls` (the first row, which is the class token where there is one) or
            `none`.

    Raises:
        ValueError: when the pool is another.
    """
    if pool == "mean":
        return rows.mean(1, keepdim=True)
    if pool == "max":
        return rows.amax(1, keepdim=True)
    if pool == "cls":
        return rows[:, :1]
    if pool == "none":
        return rows
    raise ValueError(f"Expected a pool among {', '.join(POOLS)}, got {pool!r}.")


class Probe(nn.Module):
    """Shifts and scales a vector as in training, and classifies it: linear, or one hidden layer with ReLU.

    Attributes:
        input_mean: [d_in], subtracted from vectors.
        input_scale: [d_in], divides them then.

    Args:
        d_in: width of a vector.
        classes: names, by the index of their logit; of two exclusive classes there are two logits.
        input_name: what vectors hold: `activations`, `latents` of all neurons, or those of some `neurons`.
        neuron_ids: the neurons that vectors hold, in order; None for activations and for all neurons.
        pool: how an item's rows become its vector, see `pool_rows`; with `none` the item's logits are the mean of its
            rows' logits.
        is_multilabel: whether classes exclude each other (softmax) or each is there or not (sigmoid).
        d_hidden: width of the hidden layer; 0: none.

    Raises:
        ValueError: when a choice is unknown.
    """

    input_mean: Float[Tensor, " d_in"]
    input_scale: Float[Tensor, " d_in"]

    def __init__(
        self,
        d_in: int,
        classes: Sequence[str],
        input_name: str = "activations",
        neuron_ids: Sequence[int] | None = None,
        pool: str = "mean",
        is_multilabel: bool = False,
        d_hidden: int = 0,
    ) -> None:
        super().__init__()
        for value, known in ((input_name, INPUTS), (pool, POOLS)):
            if value not in known:
                raise ValueError(f"Expected a probe's input and pool among {', '.join(known)}, got {value!r}.")
        self.d_in, self.d_hidden, self.pool, self.is_multilabel = d_in, d_hidden, pool, is_multilabel
        self.classes, self.input_name = tuple(classes), input_name
        self.neuron_ids = None if neuron_ids is None else tuple(int(neuron_id) for neuron_id in neuron_ids)
        if self.neuron_ids is not None and len(self.neuron_ids) != d_in:
            raise ValueError(f"Expected a probe of {len(self.neuron_ids)} neurons to be as wide, got d_in={d_in}.")
        self.hidden = nn.Linear(d_in, d_hidden) if d_hidden else None
        self.output = nn.Linear(d_hidden or d_in, len(self.classes))
        self.register_buffer("input_mean", torch.zeros(d_in))
        self.register_buffer("input_scale", torch.ones(d_in))

    @property
    def arguments(self) -> dict[str, object]:
        """What the constructor was given, JSON values: for `save_module`."""
        return {
            "d_in": self.d_in,
            "classes": list(self.classes),
            "input_name": self.input_name,
            "neuron_ids": None if self.neuron_ids is None else list(self.neuron_ids),
            "pool": self.pool,
            "is_multilabel": self.is_multilabel,
            "d_hidden": self.d_hidden,
        }

    def forward(self, vectors: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_classes"]:
        """Returns logits [..., n_classes] of vectors [..., d_in] as they come, before shift and scale."""
        values = (vectors - self.input_mean) / self.input_scale
        return self.output(values if self.hidden is None else self.hidden(values).relu())

    def logits_of_rows(self, rows: Float[Tensor, "batch n_rows d_in"]) -> Float[Tensor, "batch n_classes"]:
        """Returns logits [batch, n_classes] of items, given all their rows [batch, n_rows, d_in]."""
        return self(pool_rows(rows, self.pool)).mean(1)

    def probabilities(self, logits: Float[Tensor, "*batch n_classes"]) -> Float[Tensor, "*batch n_classes"]:
        """Returns probabilities of logits [..., n_classes]: of exclusive classes they sum to 1."""
        return logits.sigmoid() if self.is_multilabel else logits.softmax(-1)


def read_dense_head(path: str | Path, classes: Sequence[str]) -> Probe:
    """Reads a classifier of dense layers with ReLU between them, trained elsewhere on a backbone's mean token.

    Args:
        path: a .npz file with `<layer>.kernel` [out, in] and optionally `<layer>.bias` [out], as TensorFlow.js names
            the layers of Keras; one or two layers, in the order of their names.
        classes: names of the outputs, in order.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the layers are others, or do not fit each other or the classes.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Expected the layers of a head in {path}, found no such file.")
    with np.load(path, allow_pickle=False) as arrays:
        values = {name: torch.from_numpy(arrays[name].astype(np.float32)) for name in arrays.files}
    names = sorted(name.removesuffix(".kernel") for name in values if name.endswith(".kernel"))
    widths = [tuple(values[f"{name}.kernel"].shape) for name in names]
    fit = [into for into, _ in widths[:-1]] == [out_of for _, out_of in widths[1:]]
    if len(names) not in (1, 2) or not fit or widths[-1][0] != len(classes):
        raise ValueError(
            f"Expected one or two layers <layer>.kernel [out, in] that end in {len(classes)} classes in {path}, got "
            f"{dict(zip(names, widths, strict=True))}: give the classes of this head, or another file."
        )
    probe = Probe(widths[0][1], classes, d_hidden=widths[0][0] if len(names) == 2 else 0)
    for layer, name in zip([probe.hidden, probe.output][-len(names) :], names, strict=True):
        assert layer is not None
        bias = values.get(f"{name}.bias", torch.zeros(layer.out_features))
        layer.load_state_dict({"weight": values[f"{name}.kernel"], "bias": bias})
    return probe.eval()
