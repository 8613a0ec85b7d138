"""Writes MobileNetV2 tokens of blood smear photographs as a folder of features that `exp=features` reads.

    python -m experiments.sae_families.tokens <data folder> <output folder>

The data folder holds `weights/mobilenetv2_035_imagenet.safetensors` (timm's names), `images/bccd/*.jpg` and
`images/bccd_images.csv` (image_id, path, split, n_platelets). An image is a "slide" of 14 x 14 tokens;
its label says whether platelets are in it; the split is the source's.
"""

import argparse
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from src.progress import track

_SIZE = 448
_STRIDE = 32


def main() -> None:
    """Writes `h5_files/`, `dataset.csv` and `splits/splits_0.csv`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    images: Any = pd.read_csv(arguments.data / "images" / "bccd_images.csv")
    model = load_model(arguments.data / "weights" / "mobilenetv2_035_imagenet.safetensors")
    folder = arguments.output / "h5_files"
    folder.mkdir(parents=True, exist_ok=True)
    for image_id, path in track(list(zip(images["image_id"], images["path"], strict=True)), "Tokens"):
        image = Image.open(arguments.data / "images" / path).convert("RGB").resize((_SIZE, _SIZE))
        _write(folder / f"{image_id}.h5", tokens_of(model, np.asarray(image)[None])[0])
    ids = images["image_id"]
    labels = np.where(images["n_platelets"] > 0, "platelets", "none")
    table = pd.DataFrame({"case_id": ids, "item_id": ids, "label": labels})
    table.to_csv(arguments.output / "dataset.csv", index=False)
    splits = arguments.output / "splits"
    splits.mkdir(exist_ok=True)
    parts = {part: ids[images["split"] == part].reset_index(drop=True) for part in ("train", "val", "test")}
    pd.DataFrame(parts).to_csv(splits / "splits_0.csv")


def load_model(weights: Path) -> torch.nn.Module:
    """Builds the encoder in evaluation mode; padding and epsilon are those its weights were trained with."""
    model = timm.create_model("mobilenetv2_035", pretrained=False, pad_type="same", bn_eps=1e-3, num_classes=0)
    result = model.load_state_dict(load_file(weights), strict=False)
    lost = [name for name in result.missing_keys if not name.endswith("num_batches_tracked")]
    if lost or result.unexpected_keys:
        raise ValueError(f"Expected {weights} to hold all weights and no others, got {lost} {result.unexpected_keys}.")
    return model.eval()


@torch.no_grad()
def tokens_of(model: torch.nn.Module, pixels: np.ndarray) -> Tensor:
    """Returns the tokens [n_images, n_tokens, 1280] of RGB images [n_images, height, width, 3] uint8, row by row."""
    inputs = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    return model.forward_features(inputs).flatten(2).transpose(1, 2)  # pyright: ignore[reportCallIssue]


def _write(path: Path, tokens: Tensor) -> None:
    side = round(len(tokens) ** 0.5)
    rows, columns = np.divmod(np.arange(len(tokens)), side)
    with h5py.File(path, "w") as file:
        file["features"] = tokens.numpy()
        file["coords"] = (np.stack([columns, rows], axis=1) * _STRIDE).astype(np.int32)


if __name__ == "__main__":
    main()
