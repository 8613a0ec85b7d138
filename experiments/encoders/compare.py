"""Our encoders beside their authors' packages, under the same random weights: what `official.py` wrote.

Run: python -m experiments.encoders.compare <folder>
"""

import sys
import tempfile
from pathlib import Path

import torch

from src import config


@torch.no_grad()
def compare(path: Path) -> tuple[float, float, float, float]:
    """Returns the largest differences between an encoder's numbers here and there.

    Args:
        path: what `official.py` wrote for the backbone of that name.

    Returns:
        Of pixels (in grey levels of 255), of the output for the official pixels, and for the images themselves, as
        shares of the largest output; and that output.
    """
    official = torch.load(path, weights_only=True)
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        torch.save(official["weights"], file.name)
        backbone = config.instantiate(
            config.compose([f"backbone={path.stem}", f"backbone.checkpoint={file.name}"]).backbone
        )
    images = [image.expand(3, -1, -1).contiguous() for image in official["images"]]
    pixels = torch.cat([backbone.normalize(backbone.resize(image)[None]) for image in images])
    expected, output = official["pixels"].expand(-1, 3, -1, -1).contiguous(), official["output"]
    step = backbone.normalize(torch.tensor([0, 1, 255], dtype=torch.uint8).expand(1, 3, 1, 3))
    level = float(step[0, 0, 0, 1] - step[0, 0, 0, 0])
    largest = float(output.abs().max())
    same, own = (backbone.activations(x)["output"].reshape(output.shape) for x in (expected, pixels))
    of_pixels, of_same, of_own = (
        float((given - there).abs().max()) for given, there in ((pixels, expected), (same, output), (own, output))
    )
    return of_pixels / level, of_same / largest, of_own / largest, largest


if __name__ == "__main__":
    print("| encoder | pixels, grey levels | output of the same pixels | output of the same images | largest output |")
    print("|---|---|---|---|---|")
    for path in sorted(Path(sys.argv[1]).glob("*.pt")):
        of_pixels, same, own, largest = compare(path)
        print(f"| `{path.stem}` | {of_pixels:.2g} | {same:.1e} | {own:.1e} | {largest:.3g} |")
