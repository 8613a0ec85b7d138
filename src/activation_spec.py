"""What activations are of: the identity that travels with them into every file that is made of them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from src.files import digest_text

UNKNOWN = "unknown"
"""The value of a field that a file does not state, as those of other programs do not."""
_DIGEST_LENGTH = 12


@dataclass(frozen=True)
class ActivationSpec:
    """The model, the place in it and the preprocessing that activations come from.

    All fields are texts, so that they fit into h5 attributes and safetensors metadata. Patch size and mpp are `none`
    where images are not cut into patches.

    Attributes:
        model: the architecture, as timm or open_clip name it.
        weights: digest of the weights; of random ones their seed.
        layer: index of the block from 0, or `output`.
        tokens: what a row is: `cls`, `patch`, `all`, `mean` of the patch tokens, `pooled` by the model, `projected`.
        grid: tokens along height and width of an image, `14x14`; `1x1` of pooled activations.
        transform: resizing and normalisation, in words.
        input_size: height and width of the model's input in pixels, `224x224`.
        patch_size: edge in pixels of a patch cut from a slide.
        mpp: micrometres a pixel of a patch, or `level <n>` where patches are cut at a level of the slide as it is.
    """

    model: str = UNKNOWN
    weights: str = UNKNOWN
    layer: str = UNKNOWN
    tokens: str = UNKNOWN
    grid: str = UNKNOWN
    transform: str = UNKNOWN
    input_size: str = UNKNOWN
    patch_size: str = UNKNOWN
    mpp: str = UNKNOWN

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> "ActivationSpec":
        """Returns the spec in a mapping, e.g. of JSON or h5 attributes; what it lacks is unknown, the rest ignored."""
        values = values or {}
        return cls(**{field.name: str(values.get(field.name, UNKNOWN)) for field in fields(cls)})

    @classmethod
    def from_json(cls, text: str | None) -> "ActivationSpec":
        """Returns the spec that `to_json` wrote; unknown throughout for None or an empty text."""
        return cls.from_dict(json.loads(text) if text else None)

    def to_dict(self) -> dict[str, str]:
        """Returns the fields by name."""
        return asdict(self)

    def to_json(self) -> str:
        """Returns the fields as one line, for formats that hold texts."""
        return json.dumps(asdict(self))

    @property
    def digest(self) -> str:
        """Twelve hex digits that stand for all fields."""
        return digest_text(self.to_json(), _DIGEST_LENGTH)

    def differences(self, other: "ActivationSpec") -> list[str]:
        """Returns the names of the fields that both know and that differ."""
        pairs = ((name, value, getattr(other, name)) for name, value in asdict(self).items())
        return [name for name, mine, others in pairs if UNKNOWN not in (mine, others) and mine != others]

    def filled(self, other: "ActivationSpec") -> "ActivationSpec":
        """Returns this spec with what it does not know taken from another."""
        pairs = ((name, value, getattr(other, name)) for name, value in asdict(self).items())
        return ActivationSpec(**{name: others if mine == UNKNOWN else mine for name, mine, others in pairs})

    def __str__(self) -> str:
        known = ", ".join(f"{name} {value}" for name, value in asdict(self).items() if value != UNKNOWN)
        return f"[{self.digest}: {known or 'nothing is known'}]"


def require_same_spec(here: ActivationSpec, source: str, there: ActivationSpec, other_source: str, remedy: str) -> None:
    """Refuses to bring activations of different models, layers or preprocessing together.

    Args:
        here: the spec that is expected.
        source: where it is stated, for the message.
        there: the one that was found.
        other_source: where that is stated.
        remedy: what to do about it, a sentence.

    Raises:
        ValueError: when a field that both know differs; prints both specs.
    """
    if different := here.differences(there):
        raise ValueError(
            f"Expected activations of one kind, got two that differ in {', '.join(different)}:\n"
            f"  {source}: {here}\n  {other_source}: {there}\n{remedy}"
        )
