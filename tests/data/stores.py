"""Makes packed stores for tests."""

import torch

from src.data.features import FeatureFolder
from src.data.packing import pack_activations


def pack(path, bags):
    """Packs arrays by slide id through real feature files."""
    (path / "pt_files").mkdir(parents=True)
    for slide_id, features in bags.items():
        torch.save(torch.as_tensor(features, dtype=torch.float32), path / "pt_files" / f"{slide_id}.pt")
    return pack_activations(FeatureFolder(path), list(bags), path / "cache")
