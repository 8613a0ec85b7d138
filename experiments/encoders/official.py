"""Image towers of their authors' own packages, with random weights, on drawn images; `compare.py` reads what they give.

Needs nothing of Loupe, since the packages want other versions of libraries than Loupe does; see README.md.

Run: PYTHONPATH=<folder with the packages> python experiments/encoders/official.py <folder to write>
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

# Height and width: portrait, landscape, square, and smaller than the input in one or both directions.
SIZES = ((390, 320), (320, 389), (500, 500), (150, 101), (224, 300))
MAMMOGRAM = (1520, 912)


def draw_images(sizes: tuple[tuple[int, int], ...]) -> list[np.ndarray]:
    """Returns grey images, uint8 [height, width]: spots of many sizes with noise, from 10 to 200."""
    rng = np.random.default_rng(0)
    images = []
    for height, width in sizes:
        spots = rng.integers(18, 193, (height // 16 + 2, width // 16 + 2), dtype=np.uint8)
        smooth = Image.fromarray(spots).resize((width, height), Image.Resampling.BILINEAR)
        images.append((np.asarray(smooth, int) + rng.integers(-8, 8, (height, width))).astype(np.uint8))
    return images


@torch.no_grad()
def with_random_weights(make: Callable[[], nn.Module]) -> nn.Module:
    """Returns a model whose norms are not at their start either, so that no two layers can be confused."""
    torch.manual_seed(0)
    model = make().eval()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("running_var"):
            value.copy_(0.5 + torch.rand_like(value))
        elif value.ndim == 1 and value.is_floating_point():
            value.add_(0.1 * torch.randn_like(value))
    return model


def medclip_towers() -> dict[str, nn.Module]:
    """Returns MedCLIP's towers; at their making they would fetch ImageNet's weights, for which random ones stand in."""
    import transformers

    auto: Any = transformers.AutoModel
    make_resnet = torchvision.models.resnet50
    torchvision.models.resnet50 = lambda pretrained: make_resnet()  # noqa: ARG005 named by its caller
    auto.from_pretrained = lambda _: auto.from_config(transformers.SwinConfig())
    medclip: Any = importlib.import_module("medclip")
    makers = {"medclip_resnet50": medclip.MedCLIPVisionModel, "medclip_vit": medclip.MedCLIPVisionModelViT}
    return {name: with_random_weights(make) for name, make in makers.items()}


def medclip_pixels(images: list[np.ndarray]) -> Tensor:
    """Returns what MedCLIP's feature extractor gives, [n, 1, 224, 224]."""
    extract: Any = importlib.import_module("medclip.dataset").MedCLIPFeatureExtractor()
    return torch.stack([torch.tensor(extract(Image.fromarray(image))["pixel_values"][0]) for image in images]).float()


def mammo_clip_tower() -> nn.Module:
    """Returns Mammo-CLIP's EfficientNet-B5, of the modules alone: the package's own imports want its whole training."""
    found = importlib.util.find_spec("codebase")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(
            "Expected the package mammoclip on PYTHONPATH, found none. Install it as README.md says."
        )
    modules = ModuleType("mammo_clip_modules")
    modules.__path__ = [str(Path(found.submodule_search_locations[0]) / "breastclip" / "model" / "modules")]
    sys.modules["mammo_clip_modules"] = modules
    tower: Any = importlib.import_module("mammo_clip_modules.efficientnet_custom")
    return with_random_weights(lambda: tower.EfficientNet.from_name("efficientnet-b5", num_classes=1))


def mammo_clip_pixels(image: np.ndarray) -> Tensor:
    """Returns what Mammo-CLIP's reader gives (codebase/Datasets/dataset_concepts.py), [1, 3, height, width]."""
    values = np.repeat(image[None], 3, axis=0).astype("float32")
    values -= values.min()
    values /= values.max()
    return torch.tensor((values - 0.3089279) / 0.25053555408335154, dtype=torch.float32)[None]


@torch.no_grad()
def main(folder: Path) -> None:
    """Writes a file an encoder: its weights as published files have them, images, pixels and output."""
    folder.mkdir(parents=True, exist_ok=True)
    images = draw_images(SIZES)
    pixels = medclip_pixels(images)
    for name, tower in medclip_towers().items():
        weights = {f"vision_model.{key}": value for key, value in tower.state_dict().items()}
        content = {"images": [torch.tensor(image) for image in images], "pixels": pixels, "output": tower(pixels)}
        torch.save({"weights": weights, **content}, folder / f"{name}.pt")
    (mammogram,) = draw_images((MAMMOGRAM,))
    pixels, tower = mammo_clip_pixels(mammogram), mammo_clip_tower()
    weights = {f"image_encoder.{key}": value for key, value in tower.state_dict().items() if not key.startswith("_fc")}
    extract: Any = tower.extract_features
    output = extract(pixels).flatten(2).mT[0]  # rows of the map, as our tokens
    content = {"images": [torch.tensor(mammogram)], "pixels": pixels, "output": output}
    torch.save({"weights": weights, **content}, folder / "mammo_clip_b5.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
