"""Makes packed stores for tests."""

import torch

from src.data.packing import pack_activations
from src.data.readers.features import FeatureFolder
from src.files import digest_array
from src.stores.activations.index import digest_coords


def pack(path, bags):
    """Packs arrays by item id through real feature files."""
    (path / "pt_files").mkdir(parents=True)
    for item_id, features in bags.items():
        torch.save(torch.as_tensor(features, dtype=torch.float32), path / "pt_files" / f"{item_id}.pt")
    return pack_activations(FeatureFolder(path), list(bags), path / "cache")


def check_digests(store):
    """Compares every row and all coords of a store with the digests in its index."""
    for item_id, row in store.index.items():
        coords = store.coords(item_id)
        assert digest_array(store.rows(item_id)) == row.digest
        assert ("" if coords is None else digest_coords(coords)) == row.coords_digest
