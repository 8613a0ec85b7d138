"""One shard of latents: a safetensors file, written from pieces and mapped."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from src.files import write_atomically

_ALIGNMENT = 8
_TYPES = {"uint8": "U8", "uint16": "U16", "uint32": "U32", "int32": "I32", "int64": "I64", "float32": "F32"}
_LENGTH = np.dtype("<u8")


def write_shard(path: Path, arrays: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Writes arrays, each given in pieces along its first axis, whole or not at all.

    The pieces go to the file one by one: the library would join them, and copy each array once more.

    Raises:
        OSError: when the disk is full, saying what was needed.
    """
    header, position = {}, 0
    # Wide types first, so that each array begins at a multiple of its item.
    arrays = dict(sorted(arrays.items(), key=lambda named: -named[1][0].itemsize))
    for name, pieces in arrays.items():
        n_bytes = sum(piece.nbytes for piece in pieces)
        header[name] = {
            "dtype": _TYPES[pieces[0].dtype.name],
            "shape": [sum(map(len, pieces)), *pieces[0].shape[1:]],
            "data_offsets": [position, position + n_bytes],
        }
        position += n_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with write_atomically(path, len(text) + position, durable=True) as temporary, open(temporary, "wb") as file:
        file.write(np.array(len(text), _LENGTH).tobytes() + text)
        for pieces in arrays.values():
            for piece in pieces:
                file.write(np.ascontiguousarray(piece).data)


def map_shard(path: Path) -> dict[str, np.ndarray]:
    """Maps the arrays of a file that `write_shard` wrote, read-only.

    Raises:
        ValueError: when it is missing or damaged.
    """
    names = {code: name for name, code in _TYPES.items()}
    try:
        data = np.memmap(path, np.uint8, "r")
        start = _LENGTH.itemsize + int(data[: _LENGTH.itemsize].view(_LENGTH)[0])
        header = json.loads(data[_LENGTH.itemsize : start].tobytes())
        return {
            name: data[start:][slice(*entry["data_offsets"])].view(names[entry["dtype"]]).reshape(entry["shape"])
            for name, entry in header.items()
        }
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"Expected readable latents at {path}, got {error}. Run task=encode again.") from error
