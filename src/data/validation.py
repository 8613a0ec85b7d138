"""Takes a validation part out of the train items of a fold whose file lists none."""

from collections.abc import Mapping
from dataclasses import replace

from src.files import digest_text
from src.records import Item
from src.split_files import FoldSplit


def carve_validation(split: FoldSplit, items: Mapping[str, Item], share: float, seed: int) -> FoldSplit:
    """Moves whole cases from a fold's train items to its validation items.

    Cases are drawn class by class, in the order of a digest of seed and case id, which no version of a library changes.
    Of each class as many are taken as its share asks for, at least one, and at least one stays; of a class with one
    case none is taken. A case with items of several classes counts as a class of its own.

    Args:
        split: the fold; its own validation items, if any, are dropped.
        items: by id, all of the split among them.
        share: of all items of the fold.
        seed: of the draw.

    Returns:
        The fold, its train items in their order.
    """
    share_of_train = share * len(split.item_ids("train+test")) / len(split.train)
    taken: set[str] = set()
    for cases in _cases_by_class(split, items).values():
        target = share_of_train * sum(map(len, cases.values()))
        n_taken = 0
        for case_id in sorted(cases, key=lambda case_id: digest_text(f"{seed} {case_id}"))[:-1]:
            if n_taken and n_taken + len(cases[case_id]) / 2 > target:
                break
            taken.update(cases[case_id])
            n_taken += len(cases[case_id])
    train, val = (tuple(one for one in split.train if (one in taken) == moves) for moves in (False, True))
    return replace(split, train=train, val=val)


def _cases_by_class(split: FoldSplit, items: Mapping[str, Item]) -> dict[str, dict[str, list[str]]]:
    """Returns the train items of each case, by class and case."""
    cases: dict[str, list[str]] = {}
    for item_id in split.train:
        cases.setdefault(items[item_id].case_id, []).append(item_id)
    found: dict[str, dict[str, list[str]]] = {}
    for case_id, item_ids in cases.items():
        labels = sorted({items[item_id].label or "" for item_id in item_ids})
        found.setdefault("+".join(labels), {})[case_id] = item_ids
    return found
