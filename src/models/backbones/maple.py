"""MaPLe: learnt prompts in both towers of CLIP (Khattak et al. 2023, "MaPLe: multi-modal prompt learning")."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_LEARNER = "prompt_learner."


def add_prompts(clip: Any, depth: int, length: int) -> None:
    """Adds prompts to an open_clip model with two transformers, as buffers `prompts` and `visual.prompts`.

    The first `depth` blocks of each tower get their own prompts in place of the previous block's. In a text they stand
    behind the start token, in the place of its first words ("a photo" of "a photo of a {}."); the first ones get
    positions. In an image they are added to the patches, without positions. MaPLe appends them; here they come after
    the class token, which changes no number, because attention does not know an order, and keeps the patches last.

    Args:
        clip: changed in place.
        depth: of how many blocks, at least 1.
        length: prompts a block.
    """
    visual = clip.visual
    width = visual.class_embedding.shape[0]
    clip.register_buffer("prompts", 0.02 * torch.randn(depth, length, clip.positional_embedding.shape[1]))
    visual.register_buffer("prompts", 0.02 * torch.randn(depth, length, width))
    places = slice(1, 1 + length)

    def insert(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        return torch.cat([x[:, :1], x.new_zeros(len(x), length, width), x[:, 1:]], dim=1), *args[1:]

    def fill_text(block: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
        prompts = clip.prompts[block]
        return _filled(args, places, prompts + clip.positional_embedding[places] if block == 0 else prompts)

    def fill_image(block: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
        prompts = visual.prompts[block]
        return _filled(args, places, visual.ln_pre(prompts) if block == 0 else prompts)

    visual.transformer.register_forward_pre_hook(insert)
    for tower, fill in ((clip, fill_text), (visual, fill_image)):
        for index, block in enumerate(tower.transformer.resblocks[:depth]):
            block.register_forward_pre_hook(lambda _module, args, fill=fill, index=index: fill(index, args))


def maple_keys(weights: Mapping[str, Tensor], clip: Any) -> dict[str, Tensor]:
    """Returns the keys of open_clip and `add_prompts` for those of MaPLe's checkpoints.

    Image prompts are linear maps of the text prompts, and computed here once. The embeddings of words are not in the
    file: they are CLIP's own, which the model has. The words of the classes that it was trained on are left out.

    Args:
        weights: of the file (`model.pth.tar-<epoch>`, below `state_dict`). Those of another family pass unchanged.
        clip: the model, with the weights of CLIP.
    """
    if f"{_LEARNER}ctx" not in weights:
        return dict(weights)
    own = {}
    for key, value in weights.items():
        if not key.startswith(_LEARNER):
            own[key.replace("image_encoder.", "visual.").removeprefix("text_encoder.")] = value
    n_deep = sum(key.startswith(f"{_LEARNER}compound_prompts_text.") for key in weights)
    texts = [f"{_LEARNER}ctx", *(f"{_LEARNER}compound_prompts_text.{index}" for index in range(n_deep))]
    maps = [f"{_LEARNER}proj", *(f"{_LEARNER}compound_prompt_projections.{index}" for index in range(n_deep))]
    prompts = [weights[key].float() for key in texts]
    images = [
        nn.functional.linear(prompt, weights[f"{key}.weight"].float(), weights[f"{key}.bias"].float())
        for prompt, key in zip(prompts, maps, strict=True)
    ]
    own |= {"prompts": torch.stack(prompts), "visual.prompts": torch.stack(images)}
    return own | {"token_embedding.weight": clip.token_embedding.weight}


def _filled(args: tuple[Any, ...], places: slice, prompts: Tensor) -> tuple[Any, ...]:
    x = args[0].clone()
    x[:, places] = prompts.to(x.dtype)
    return x, *args[1:]
