"""One tensor in a .pt file, mapped and not loaded."""

import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from src.data.readers.h5_files import FeatureFileError

if TYPE_CHECKING:  # torch takes seconds to import, and most files are no .pt
    import torch


def map_tensor(path: Path, remedy: str) -> "torch.Tensor":
    """Maps the tensor of a .pt file; one written before torch 1.6 cannot be mapped and is read whole.

    Args:
        path: what torch.save wrote; nothing in it is run.
        remedy: a sentence on what to do about a bad file.

    Raises:
        FeatureFileError: when it is damaged, holds something else than one dense tensor, or the tensor's shape
            promises more values than the file holds (a view that repeats them, as `expand` makes).
    """
    import torch

    if not path.is_file():
        raise FeatureFileError(f"Expected a .pt file at {path}, got no regular file. {remedy}")
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        found = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FeatureFileError(f"Expected a readable .pt file at {path}, got {found} {remedy}") from error
    if not isinstance(content, torch.Tensor) or content.layout != torch.strided or content.is_quantized:
        kind = f"{content.layout} values" if isinstance(content, torch.Tensor) else type(content).__name__
        raise FeatureFileError(f"Expected one dense tensor in {path}, got {kind}: save the tensor alone. {remedy}")
    declared, stored = content.numel() * content.element_size(), content.untyped_storage().nbytes()
    if declared > stored:
        raise FeatureFileError(
            f"Expected {declared:,} bytes in {path}, as its shape {tuple(content.shape)} says, got {stored:,}: a view "
            f"that repeats its values was saved. Save tensor.contiguous(). {remedy}"
        )
    return content.detach()


def numpy_dtype(tensor: "torch.Tensor") -> np.dtype:
    """Returns what the values need in numpy: float16 where they are, else float32 (numpy has no bfloat16)."""
    return np.dtype(np.float16 if str(tensor.dtype) == "torch.float16" else np.float32)


def to_numpy(tensor: "torch.Tensor") -> np.ndarray:
    """Returns the values as float16 where they are, else as float32; may share the tensor's memory."""
    return tensor.numpy() if numpy_dtype(tensor) == np.float16 else tensor.float().numpy()
