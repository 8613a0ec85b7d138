"""Key lists of published weights files: one line a key with its shape, `{0-11}` for a range of blocks."""

import re
from pathlib import Path

import torch

FOLDER = Path(__file__).parent / "keys"
NAMES = sorted(path.stem for path in FOLDER.glob("*.txt"))
_RANGE = re.compile(r"\{(\d+)-(\d+)\}")


def published_shapes(name, depth=None):
    """Returns shapes by key; with `depth`, of the first so many of each range only."""
    shapes = {}
    for line in (FOLDER / f"{name}.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            key, *shape = line.split()
            for one in _expand(key, depth):
                assert one not in shapes, f"{name}: {one} twice"
                shapes[one] = tuple(map(int, shape))
    return shapes


def random_weights(shapes, seed=0):
    """Returns weights in the layout of a published file: matrices that keep the scale, positive variances."""
    generator = torch.Generator().manual_seed(seed)

    def draw(key, shape):
        if key.endswith("num_batches_tracked"):
            return torch.tensor(7)
        values = torch.randn(shape, generator=generator) / max(1, torch.Size(shape[1:]).numel()) ** 0.5
        if key.endswith("running_var"):
            return values.abs() + 0.5
        return 1 + 0.1 * values if len(shape) == 1 and key.endswith("weight") else values

    return {key: draw(key, shape) for key, shape in shapes.items()}


def meta_weights(shapes):
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def save(weights, tmp_path, name="w.bin"):
    torch.save(weights, tmp_path / name)
    return str(tmp_path / name)


def below(weights, prefix):
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def assert_close(given, expected):
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def _expand(key, depth):
    found = _RANGE.search(key)
    if found is None:
        return [key]
    first, last = int(found[1]), int(found[2])
    last = last if depth is None else min(last, first + depth - 1)
    return [
        one for i in range(first, last + 1) for one in _expand(f"{key[: found.start()]}{i}{key[found.end() :]}", depth)
    ]
