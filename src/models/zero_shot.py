"""Zero-shot classification: features against the text of each class, in CLIP's shared space."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from src.models.backbones.open_clip_backbone import OpenClipBackbone

HALVES = ("all", "base", "novel")


class ZeroShot(nn.Module):
    """Cosine similarity of features to the text features of each class, scaled as CLIP learned it.

    logits = logit_scale * (features / |features|) @ text_features.T (Radford et al., "Learning transferable visual
    models from natural language supervision", 2021). Text features are taken as they are: see `text_features`.

    Args:
        text_features: [n_classes, n].
        logit_scale: the factor itself, exp of CLIP's parameter of this name.
        classes: names, by the index of their logit.

    Raises:
        ValueError: when there is not one text feature a class.
    """

    texts: Float[Tensor, "n_classes n"]

    def __init__(self, text_features: Float[Tensor, "_ n"], logit_scale: float, classes: Sequence[str]) -> None:
        super().__init__()
        if len(text_features) != len(classes):
            raise ValueError(f"Expected one text feature a class, got {len(text_features)} for {len(classes)}.")
        self.classes, self.logit_scale, self.d_in = tuple(classes), float(logit_scale), text_features.shape[1]
        self.register_buffer("texts", text_features.detach().clone())

    def forward(self, features: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n_classes"]:
        """Returns logits [batch, n_classes] of image features [batch, n], which need not be normalised."""
        return self.logit_scale * F.normalize(features, dim=-1) @ self.texts.T


@torch.no_grad()
def text_features(
    encode: Callable[[list[str]], Tensor],
    names: Sequence[str],
    templates: Sequence[str],
    is_renormalized: bool = True,
) -> Float[Tensor, "n_classes n"]:
    """Returns one text feature a class [n_classes, n]: the mean of the normalised features of its prompts.

    CLIP normalises the mean again; PatchSAE does not, so that classes whose prompts agree get larger logits.

    Args:
        encode: gives features [n_texts, n] of texts.
        names: of the classes, as they stand in a prompt.
        templates: prompts with `{}` in place of the name.
        is_renormalized: whether the mean is normalised again.

    Raises:
        ValueError: when there is no template, or one has no place for the name.
    """
    if wrong := [template for template in templates if "{}" not in template] or not templates:
        raise ValueError(f"Expected templates with {{}} in place of the class, got {wrong if templates else 'none'}.")
    of_classes = []
    for name in names:
        features = F.normalize(encode([template.format(name) for template in templates]).float(), dim=-1).mean(0)
        of_classes.append(F.normalize(features, dim=0) if is_renormalized else features)
    return torch.stack(of_classes)


def zero_shot_of(
    backbone: OpenClipBackbone,
    classes: Sequence[str],
    templates: Sequence[str],
    texts: Mapping[str, str] | None = None,
    is_renormalized: bool = True,
) -> ZeroShot:
    """Returns the zero-shot classifier of a backbone with a text tower.

    Args:
        backbone: it.
        classes: names of the classes.
        templates: prompts with `{}` in place of the name; see `imagenet_templates`.
        texts: own text of some classes, see `prompt_names`.
        is_renormalized: see `text_features`.

    Raises:
        ValueError: as `text_features` and `prompt_names`.
    """
    tokenize = open_clip.get_tokenizer(backbone.spec("output").model)
    clip: Any = backbone.clip

    def encode(of_class: list[str]) -> Tensor:
        return backbone.text_features(tokenize(of_class).to(backbone.device))

    features = text_features(encode, prompt_names(classes, texts), templates, is_renormalized)
    return ZeroShot(features, float(clip.logit_scale.detach().exp()), classes)


def imagenet_templates() -> tuple[str, ...]:
    """Returns the 80 prompts that CLIP's authors use for ImageNet, as open_clip ships them."""
    return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)


def prompt_names(classes: Sequence[str], texts: Mapping[str, str] | None = None) -> list[str]:
    """Returns how classes are called in prompts: by own text where there is some, else underscores become spaces.

    Raises:
        ValueError: when a text is for a class that there is not.
    """
    texts = texts or {}
    if unknown := sorted(set(texts) - set(classes)):
        raise ValueError(f"Expected texts for classes among {list(classes)}, got some for {unknown}.")
    return [texts.get(name, name.replace("_", " ")) for name in classes]


def half_of_classes(classes: Sequence[str], half: str) -> tuple[str, ...]:
    """Returns all classes, the `base` or the `novel` ones: the first half, rounded down, and the rest, as PatchSAE.

    Raises:
        ValueError: when the half is another word.
    """
    if half not in HALVES:
        raise ValueError(f"Expected the classes to be one of {', '.join(HALVES)}, got {half!r}.")
    middle = len(classes) // 2
    return tuple(classes)[{"all": slice(None), "base": slice(middle), "novel": slice(middle, None)}[half]]
