"""Steering a ViT-B/16 at its last but one block: the published loop of whole passes, and ours.

Run: python -m experiments.benchmarks.steering [--quick] [--images N]
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from src.models.backbones.timm_backbone import TimmBackbone
from src.models.heads import TailHead
from src.models.saes.relu_l1 import ReLUL1
from src.models.steering import Steering
from src.ops.steering import Edit, keep, remove

LAYER, N_CLASSES, L0 = -2, 10, 64
SIZES = (1, 2, 5, 10, 50, 100, 500, 1000, 2000)


def make_sae(activations: Tensor, n_latents: int) -> ReLUL1:
    """Returns an SAE with random atoms whose bias lets about `L0` latents a token through."""
    torch.manual_seed(0)
    rows = activations.flatten(0, 1)
    sae = ReLUL1(rows.shape[1], n_latents).eval().requires_grad_(False)
    sae.b_dec.copy_(rows.mean(0))
    pre_latents = sae.pre_latents(rows[:500])
    sae.b_enc.sub_(pre_latents.kthvalue(n_latents - L0, dim=1).values.mean())
    return sae


def published_passes(
    backbone: TimmBackbone, sae: ReLUL1, images: Tensor, masks: Sequence[Tensor | None]
) -> list[Tensor]:
    """Returns logits under each mask: every time the whole model, with dense latents inside a hook.

    Args:
        backbone: the model.
        sae: of its layer.
        images: normalised.
        masks: [n_latents] of zeros and ones; None: the model as it is.
    """
    found = []
    for mask in masks:

        def replace(_module: object, _args: object, output: Tensor, mask: Tensor | None = mask) -> Tensor | None:
            if mask is None:
                return None
            latents = torch.relu((output - sae.b_dec) @ sae.W_enc.T + sae.b_enc)
            return (latents * mask) @ sae.W_dec + sae.b_dec

        handle = backbone.model.get_submodule(backbone.layers[LAYER]).register_forward_hook(replace)
        found.append(backbone.model(images))
        handle.remove()
    return found


def our_passes(
    backbone: TimmBackbone, head: TailHead, sae: ReLUL1, images: Tensor, edits: Sequence[Edit | None]
) -> list:
    """Returns the same logits: activations and latents once, then the tail an edit."""
    (rows,) = backbone.activations(images).values()
    return Steering(head, sae, edits, keeps_error=False)(rows)


def timed(function: Callable[[], list[Tensor]]) -> tuple[float, Tensor]:
    """Returns seconds and logits [n_masks, n_images, n_classes]."""
    started = time.perf_counter()
    found = function()
    return time.perf_counter() - started, torch.stack(found)


@torch.inference_mode()
def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="a small model and few sizes, to see that it runs")
    parser.add_argument("--images", type=int, default=1, help="images a class")
    parser.add_argument("--latents", type=int, default=6144)
    arguments = parser.parse_args()
    name, n_latents = ("vit_tiny_patch16_224", 768) if arguments.quick else ("vit_base_patch16_224", arguments.latents)
    backbone = TimmBackbone("vit", name, layer=LAYER, tokens="all", model_args={"num_classes": N_CLASSES})
    head = TailHead(backbone, LAYER, classes=[f"class {number}" for number in range(N_CLASSES)])
    images = torch.randn(N_CLASSES, arguments.images, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    # Random weights give every image nearly the same logits: a head on centred, larger features tells images apart.
    model: Any = backbone.model
    model.get_classifier().weight.normal_(std=1.0)
    (rows,) = backbone.activations(images[:, 0]).values()
    sae = make_sae(rows, n_latents)
    sizes = [size for size in SIZES if size < n_latents] + [n_latents]
    rankings = torch.rand(N_CLASSES, n_latents, generator=torch.Generator().manual_seed(1)).argsort(1)
    seconds: dict[str, list[float]] = {"whole": [], "ours": []}
    n_equal, n_all, largest = 0, 0, 0.0
    for of_class, ranking in zip(images, rankings, strict=True):
        edits = [None]
        for size in sizes:
            edits += [keep(ranking[:size], n_latents), remove(ranking[:size], n_latents)]
        masks = [None if edit is None else (~edit.changed).float() for edit in edits]
        took, expected = timed(lambda masks=masks, x=of_class: published_passes(backbone, sae, x, masks))
        seconds["whole"].append(took)
        took, found = timed(lambda edits=edits, x=of_class: our_passes(backbone, head, sae, x, edits))
        seconds["ours"].append(took)
        n_equal += int((expected.argmax(-1) == found.argmax(-1)).sum())
        n_all += expected[..., 0].numel()
        largest = max(largest, float((expected - found).abs().max()))
    l0 = sae.encode(rows.flatten(0, 1)).n_entries / rows.flatten(0, 1).shape[0]
    print(
        f"{name}, layer {LAYER}, {n_latents:,} neurons, {l0:.0f} latents a token, {len(edits)} passes of "
        f"{arguments.images} image(s) of each of {N_CLASSES} classes, {torch.get_num_threads()} threads"
    )
    print(f"{'':<28}{'s in all':>10}{'s a class, median':>20}")
    for what, times in (("whole passes, dense", seconds["whole"]), ("ours", seconds["ours"])):
        print(f"{what:<28}{sum(times):>10.1f}{statistics.median(times):>20.2f}")
    ratio = statistics.median(a / b for a, b in zip(seconds["whole"], seconds["ours"], strict=True))
    print(f"{ratio:.1f} x as fast; {n_equal} of {n_all} predictions equal, logits differ by {largest:.1e} at most")


if __name__ == "__main__":
    main()
