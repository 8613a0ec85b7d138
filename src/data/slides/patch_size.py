"""The edge of a patch in level-0 pixels, as the files state it."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def patch_size_level0(attributes: Mapping[str, Any]) -> int | None:
    """Returns the level-0 edge of a patch from h5 attributes; None when they do not state it: it is never guessed.

    TRIDENT (and Loupe) write `patch_size_level0`. CLAM writes `patch_size`, in pixels of the level the patch was read
    from, with that level's `downsample`; a patch then covers `patch_size * int(downsample)` level-0 pixels (CLAM
    truncates the level's downsample too). A `patch_size` alone says nothing about level 0.

    Args:
        attributes: of the h5 file and of its `coords`.
    """
    stated = attributes.get("patch_size_level0")
    # TRIDENT stores what it does not know as the string 'None'.
    if stated is not None and not isinstance(stated, str | bytes):
        return int(stated)
    if "patch_size" in attributes and "downsample" in attributes:
        return int(attributes["patch_size"]) * int(np.ravel(attributes["downsample"])[0])
    return None
