"""The parts of a split, however a data set spells them."""

from collections.abc import Iterable

from src.csv_tables import some

PART_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""The part that a folder, or an entry of a column, names; in lower case."""


def group_by_part(item_ids: Iterable[str], names: Iterable[str], source: str) -> dict[str, list[str]]:
    """Returns the ids of each part.

    Args:
        item_ids: of the items.
        names: of the part of each; "" for an item of none.
        source: where they stand, for messages.

    Raises:
        ValueError: when a name is none of those known.
    """
    parts: dict[str, list[str]] = {}
    unknown: dict[str, None] = {}
    for item_id, name in zip(item_ids, names, strict=True):
        if part := PART_NAMES.get(name.lower()):
            parts.setdefault(part, []).append(item_id)
        elif name:
            unknown[name] = None
    if unknown:
        raise ValueError(f"Expected train, val or test in {source}, got {some(list(unknown))}: correct it there.")
    return parts
