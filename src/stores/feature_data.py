"""The files in which PatchSAE and CytoSAE publish the statistics of an SAE's neurons on a data set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from src.files import write_atomically
from src.safe_pickle import load_checkpoint

_FILES = {
    "indices": "max_activating_image_indices.pt",
    "values": "max_activating_image_values.pt",
    "label_indices": "max_activating_image_label_indices.pt",
    "mean_acts": "sae_mean_acts.pt",
    "sparsity": "sae_sparsity.pt",
    "entropy": "top_entropy.pt",
}
_OPTIONAL = ("entropy",)
COUNTS_FILE = "cls_sae_cnt.npy"


@dataclass(frozen=True)
class FeatureData:
    """Statistics of neurons over images.

    Attributes:
        indices: [n_latents, n] int64, the positions of the top images in the data set.
        values: [n_latents, n] float32, the mean of the latent over their tokens, falling; 0 fills a list up.
        label_indices: [n_latents, n] int64, their labels; of what fills up it means nothing.
        mean_acts: [n_latents] float32, the mean over the images with a value above 0; NaN of neurons that never fire.
        sparsity: [n_latents] float32, the share of such images.
        entropy: [n_latents] float32, see `published_entropy`; None where it was not published.
        counts: [classes or patients, n_latents], see `write_counts`; None where there are none.
    """

    indices: np.ndarray
    values: np.ndarray
    label_indices: np.ndarray
    mean_acts: np.ndarray
    sparsity: np.ndarray
    entropy: np.ndarray | None = None
    counts: np.ndarray | None = None


def feature_data_dir(root: str | Path, checkpoint: str, vit_type: str, dataset: str) -> Path:
    """Returns the published folder of a data set: `<root>/out/feature_data/<checkpoint>/<vit_type>/<dataset>`."""
    return Path(root) / "out" / "feature_data" / checkpoint / vit_type / dataset


def write_feature_data(
    folder: str | Path, data: FeatureData, transpose: bool = False, float_indices: bool = False
) -> None:
    """Writes the published files.

    Args:
        folder: see `feature_data_dir`; made when missing.
        data: the statistics.
        transpose: whether counts are written as [n_latents, classes], the shape that PatchSAE's README states; its
            programs write and read [classes, n_latents].
        float_indices: whether `max_activating_image_indices.pt` is float32, as in CytoSAE (exact below 2^24).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in _FILES.items():
        values = getattr(data, name)
        if values is None:
            continue
        dtype = torch.float32 if name not in ("indices", "label_indices") else torch.int64
        if name == "indices" and float_indices:
            dtype = torch.float32
        with write_atomically(folder / file) as temporary:
            torch.save(torch.as_tensor(np.ascontiguousarray(values)).to(dtype), temporary)
    if data.counts is not None:
        with write_atomically(folder / COUNTS_FILE) as temporary, open(temporary, "wb") as file:
            np.save(file, data.counts.T if transpose else data.counts)


def read_feature_data(folder: str | Path, n_classes: int | None = None, transpose: bool = False) -> FeatureData:
    """Reads the published files.

    Args:
        folder: where they lie; `top_entropy.pt` and `cls_sae_cnt.npy` may be missing.
        n_classes: the number of labels that there may be; None: any.
        transpose: whether the counts lie as [n_latents, classes].

    Raises:
        FileNotFoundError: when a file is missing.
        ValueError: when a file holds something else, the files disagree, or there is an unknown label.
    """
    folder = Path(folder)
    found: dict[str, Any] = {}
    for name, file in _FILES.items():
        if name in _OPTIONAL and not (folder / file).is_file():
            continue
        found[name] = _tensor(folder / file)
    for name in ("indices", "label_indices"):
        found[name] = found[name].astype(np.int64)
    if (folder / COUNTS_FILE).is_file():
        counts = np.load(folder / COUNTS_FILE)
        found["counts"] = counts.T if transpose else counts
    _check(folder, FeatureData(**found), n_classes)
    return FeatureData(**found)


def _tensor(path: Path) -> np.ndarray:
    value = load_checkpoint(path)
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"Expected a tensor in {path}, got {type(value).__name__}: is it a file of PatchSAE's?")
    return value.detach().cpu().numpy()


def _check(folder: Path, data: FeatureData, n_classes: int | None) -> None:
    n_latents, shape = len(data.mean_acts), data.values.shape
    lists, single = (data.indices, data.label_indices), (data.sparsity, data.entropy)
    wrong = any(one.shape != shape for one in lists) or shape[0] != n_latents
    if wrong or any(one is not None and one.shape != (n_latents,) for one in single):
        raise ValueError(
            f"Expected files of one SAE in {folder}, got lists of shape {shape} and {n_latents} mean activations: they "
            "belong to different runs."
        )
    if data.counts is not None and data.counts.shape[1:] != (n_latents,):
        raise ValueError(
            f"Expected {COUNTS_FILE} as [classes, {n_latents}] in {folder}, got {data.counts.shape}: give "
            "transpose=true where it lies as [latents, classes]."
        )
    filled = data.label_indices[data.values > 0]
    if n_classes is not None and filled.size and not 0 <= filled.min() <= filled.max() < n_classes:
        raise ValueError(
            f"Expected labels below {n_classes} in {folder}, got {int(filled.min())} to {int(filled.max())}: the files "
            "are of a data set with other classes."
        )
