"""What a store of latents says of itself and of its items, readable without any latents."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from src.activation_spec import ActivationSpec
from src.files import digest_file, digest_text, read_json_object, write_atomically

FORMAT = 2
HEAD_FILE = "index.json"
ITEMS_FILE = "index.csv"
BY_NEURON_FILE, NEURON_OFFSETS_FILE = "by_neuron.npy", "by_neuron_offsets.npy"
_REMEDY = "Make it with task=encode."


@dataclass(frozen=True)
class LatentItem:
    """An item whose rows are encoded.

    Attributes:
        item_id: a slide or an image.
        start: the number of its first row; the others follow.
        n_rows: how many it has.
        digest: of the activations that are encoded.
        patch_size_level0: the edge of its patches in level-0 pixels, None when not known.
    """

    item_id: str
    start: int
    n_rows: int
    digest: str = ""
    patch_size_level0: int | None = None


@dataclass(frozen=True)
class LatentIndex:
    """The index of a finished store.

    Attributes:
        path: the folder.
        n_latents: of the SAE.
        sae: digest of the SAE.
        spec: of the activations.
        shards: (file, its first row), in the order of the rows.
        digest: of the digests of all files.
        table: a row an item, in the order of their rows: item_id, start, n_rows, n_nonzero, shard (of the first row),
            patch_size_level0 (0: not known), digest (of the activations).
    """

    path: Path
    n_latents: int
    sae: str
    spec: ActivationSpec
    shards: tuple[tuple[str, int], ...]
    digest: str
    table: pd.DataFrame

    @cached_property
    def items(self) -> dict[str, LatentItem]:
        """The items by id, in the order of their rows."""
        columns = ("item_id", "start", "n_rows", "digest", "patch_size_level0")
        return {
            item_id: LatentItem(item_id, start, n_rows, digest, size or None)
            for item_id, start, n_rows, digest, size in zip(
                *(self.table[name].tolist() for name in columns), strict=True
            )
        }


def write_index(
    path: Path, n_latents: int, sae: str, spec: ActivationSpec, shards: Sequence[tuple[str, int]], table: pd.DataFrame
) -> None:
    """Writes the index, which makes a store finished; see `LatentIndex`."""
    with write_atomically(path / ITEMS_FILE) as temporary:
        table.to_csv(temporary, index=False)
    names = [ITEMS_FILE, *(name for name, _ in shards)]
    names += [name for name in (BY_NEURON_FILE, NEURON_OFFSETS_FILE) if (path / name).is_file()]
    digests = {name: digest_file(path / name) for name in names}
    head: dict[str, Any] = {"format": FORMAT, "n_latents": n_latents, "sae": sae, "spec": spec.to_dict()}
    head |= {"shards": list(shards), "digests": digests, "digest": digest_text(json.dumps(digests))}
    with write_atomically(path / HEAD_FILE) as temporary:
        temporary.write_text(json.dumps(head, indent=1) + "\n")


def read_index(path: str | Path) -> LatentIndex:
    """Reads the index of a store.

    Raises:
        FileNotFoundError: when there is no finished store.
        ValueError: when the store is of another version.
    """
    path = Path(path)
    if not (path / HEAD_FILE).is_file():
        raise FileNotFoundError(
            f"Expected a finished store of latents at {path}, found no {HEAD_FILE}: make it with task=encode."
        )
    head = read_json_object(path / HEAD_FILE, _REMEDY)
    if head.get("format") != FORMAT:
        raise ValueError(f"Expected latents of format {FORMAT} at {path}, got {head.get('format')}. {_REMEDY}")
    table = pd.read_csv(path / ITEMS_FILE, dtype={"item_id": str, "digest": str}, keep_default_na=False)
    shards = tuple((str(name), int(first)) for name, first in head["shards"])
    spec = ActivationSpec.from_dict(head["spec"])
    return LatentIndex(path, int(head["n_latents"]), head["sae"], spec, shards, head["digest"], table)
