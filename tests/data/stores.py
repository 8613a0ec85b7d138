"""Makes packed stores for tests."""

import torch

from src.data.packing import pack_activations
from src.data.readers.features import FeatureFolder


def pack(path, bags):
    """Packs arrays by item id through real feature files."""
    (path / "pt_files").mkdir(parents=True)
    for item_id, features in bags.items():
        torch.save(torch.as_tensor(features, dtype=torch.float32), path / "pt_files" / f"{item_id}.pt")
    return pack_activations(FeatureFolder(path), list(bags), path / "cache")
