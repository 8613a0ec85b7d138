"""Reading images, embedding them, cutting a slide, and 200,000 items from csv to latents.

Run: python -m experiments.benchmarks.embed [--quick]
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform  # pyright: ignore[reportPrivateImportUsage]
from torch.utils.data import DataLoader, Dataset

from src import config
from src.data.embedding.embedder import Embedder
from src.data.embedding.image_store import embed_images
from src.data.embedding.pictures import Images
from src.data.images.source import ImageSource
from src.data.slides.slide_writer import write_slide
from src.models.backbones.timm_backbone import TimmBackbone
from src.prefetch import prefetch
from src.tasks.tile import cut_slide

SIZE, BATCH = 224, 32
CONFIG = """_target_: experiments.benchmarks.one_product.OneProduct
name: one_product
model_name: one_product
tokens: patch
layer: null
image_size: 7
"""


def write_jpegs(folder: Path, n_images: int) -> list[Path]:
    """Writes photographs of 640 x 480: smooth colours with grain, some 90 kB each."""
    generator = np.random.default_rng(0)
    paths = []
    for number in range(n_images):
        coarse = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC), np.int16)
        grain = generator.integers(-12, 13, smooth.shape, dtype=np.int16)
        path = folder / f"i{number:05d}.jpg"
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)
        paths.append(path)
    lines = [f"i{number:05d},i{number:05d},i{number:05d}.jpg" for number in range(n_images)]
    (folder / "dataset.csv").write_text("case_id,image_id,path\n" + "\n".join(lines) + "\n")
    return paths


def pil_loop(paths: list[Path]) -> None:
    """Decodes and resizes as one process with PIL does."""
    for path in paths:
        with Image.open(path) as image:
            np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def our_reading(source: ImageSource, backbone: TimmBackbone, n_workers: int = 2) -> None:
    """Decodes and resizes as task=embed does."""
    batches = [Images(source.item_ids[i : i + BATCH], source) for i in range(0, len(source.item_ids), BATCH)]
    for _ in prefetch((partial(one.read, 0, one.n_pictures, backbone.resize) for one in batches), n_workers, 3):
        pass


def model_alone(backbone: TimmBackbone, n_images: int) -> None:
    """Runs the model on normalised images that lie in memory."""
    images = torch.rand(BATCH, 3, SIZE, SIZE)
    with torch.inference_mode():
        for start in range(0, n_images, BATCH):
            backbone.activations(images[: min(BATCH, n_images - start)])


def our_embedding(source: ImageSource, backbone: TimmBackbone, folder: Path) -> None:
    """From files to the packed store."""
    identities = {item_id: source.identity(item_id) for item_id in source.item_ids}
    stores = {"output": (folder, backbone.spec(), source.item_ids)}
    for _ in embed_images(Embedder(backbone, BATCH, 2), source, identities, stores, skips=False):
        pass


class Files(Dataset):
    """Images as a plain script has them: PIL and timm's own transform."""

    def __init__(self, paths: list[Path], transform: Any) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Returns a normalised image."""
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


def plain_loop(paths: list[Path], backbone: TimmBackbone, out: Path, n_workers: int) -> None:
    """A DataLoader, the model and torch.save of one tensor, the way scripts cache tokens."""
    model: Any = backbone.model
    transform = create_transform(input_size=(3, SIZE, SIZE), crop_pct=1.0, interpolation="bicubic")
    loader = DataLoader(Files(paths, transform), BATCH, num_workers=n_workers)
    with torch.inference_mode():
        torch.save(torch.cat([model.forward_features(batch)[:, 1:] for batch in loader]), out)


def seconds(function: Callable[[], object]) -> float:
    """Returns how long a call takes."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def read_and_embed(folder: Path, n_images: int, rounds: int) -> None:
    """Prints how fast images are read and embedded, beside PIL, the model alone and plain loops."""
    paths = write_jpegs(folder, n_images)
    source = ImageSource(folder / "dataset.csv", folder)
    backbone = TimmBackbone("vit_tiny", "vit_tiny_patch16_224", tokens="patch", image_size=SIZE)
    jobs: dict[str, Callable[[], object]] = {
        "decode and resize, PIL in one process": lambda: pil_loop(paths),
        "decode and resize, ours": lambda: our_reading(source, backbone),
        "the model alone": lambda: model_alone(backbone, n_images),
        "files to store, ours": lambda: our_embedding(source, backbone, Path(tempfile.mkdtemp(dir=folder))),
    }
    for n_workers in (0, 1, 2, 4):
        out = folder / "plain.pt"
        jobs[f"DataLoader({n_workers}) + model + save"] = partial(plain_loop, paths, backbone, out, n_workers)
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            times[name].append(seconds(job))
    best = {name: statistics.median(values) for name, values in times.items()}
    print(f"{n_images} JPEGs of 640 x 480 to {SIZE}, vit_tiny_patch16_224, medians of {rounds}")
    print(f"{'':<42}{'s':>8}{'images/s':>10}")
    for name, value in best.items():
        print(f"{name:<42}{value:>8.1f}{n_images / value:>10.0f}")
    pil, ours, model, whole, *plain = best.values()
    print(f"reading: {pil / ours:.2f} x PIL; files to store: {model / whole:.2f} of the model alone, ", end="")
    print(f"{min(plain) / whole:.2f} x the best plain loop")


def cut_slides(folder: Path) -> None:
    """Prints how long a pyramidal slide of 2048 px takes to cut, by both tilings: masks and stitches included."""
    config.register_resolvers()
    typed = ["exp=quickstart", f"paths.data={folder / 'data'}", "task=tile"]
    path = folder / "slide.tif"
    write_slide(path, np.kron(draw_noise(256), np.ones((8, 8, 1), np.uint8)), 0.5)
    for name in ("default", "clam"):
        cfg = config.resolve(config.compose([*typed, f"tile={name}", "tile.patch_size=96"]))
        tiling = config.instantiate(cfg.tile)
        took = statistics.median(seconds(partial(cut_slide, path, folder, tiling, True)) for _ in range(5))
        print(f"cutting a slide of 2048 px, tile={name}: {took:.2f} s")


def draw_noise(side: int) -> np.ndarray:
    """Returns a square image, half of it pink tissue, half glass: uint8 [side, side, 3]."""
    image = np.full((side, side, 3), 240, np.uint8)
    grain = np.random.default_rng(0).integers(-20, 21, (side, side // 2, 3))
    image[:, side // 4 : side // 4 + side // 2] = np.array([200, 120, 170]) + grain
    return image


def pipeline(folder: Path, n_items: int) -> None:
    """Prints the time of each step from a csv of small images to latents, with memory and files."""
    images = np.random.default_rng(0).integers(0, 256, (n_items, 7, 7, 3), dtype=np.uint8)
    (folder / "images").mkdir()
    np.savez(folder / "images" / "images.npz", imgs=images)
    (folder / "conf" / "backbone").mkdir(parents=True)
    (folder / "conf" / "backbone" / "one_product.yaml").write_text(CONFIG)
    rows = "".join(f"c{number},i{number:06d},images.npz[{number}]\n" for number in range(n_items))
    (folder / "items.csv").write_text("case_id,image_id,path\n" + rows)
    command = [sys.executable, "-m", "src.run", f"hydra.searchpath=[file://{folder / 'conf'}]", "exp=images"]
    command += ["backbone=one_product", f"dataset.dir={folder / 'images'}", f"paths.data={folder / 'data'}"]
    command += [f"dataset.metadata_csv={folder / 'items.csv'}", "dataset.target=null", "name=small", "trainer=cpu"]
    command += [
        f"paths.runs={folder / 'runs'}",
        "splits.n_folds=2",
        "sae.expansion=8",
        "sae.k=8",
        "train.epochs=1",
        "train.residency=mmap",
        "embed.batch_size=2048",
    ]
    print(f"\n{n_items:,} images x 49 tokens x 64, from a csv to latents of 512 neurons, k 8")
    memory = 0
    for task in ("splits", "embed", "train_sae", "encode"):
        started = time.perf_counter()
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen([*command, f"task={task}"], **pipes)
        watch = Watch(process.pid)
        output, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(output)
        memory = max(memory, watch.stop())
        waited = "".join(re.findall(r"The model waited.*", output))
        print(f"{task:<12}{time.perf_counter() - started:>8.1f} s  {watch.peak / 2**30:.2f} GiB  {waited}")
    n_files = sum(path.is_file() for place in ("data", "runs") for path in (folder / place).rglob("*"))
    print(f"{memory / 2**30:.2f} GiB of anonymous memory at most, {n_files} files")


class Watch:
    """Follows the anonymous memory of a process.

    Attributes:
        peak: the most so far, in bytes.
    """

    def __init__(self, pid: int) -> None:
        self._status, self.peak = Path(f"/proc/{pid}/status"), 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Ends following, and returns the peak."""
        self._stopped.set()
        self._thread.join()
        return self.peak

    def _follow(self) -> None:
        while not self._stopped.wait(0.05):
            try:
                found = re.search(r"RssAnon:\s+(\d+) kB", self._status.read_text())
            except OSError:  # the process has ended
                return
            self.peak = max(self.peak, int(found[1]) * 1024 if found else 0)


def folders() -> Iterator[Path]:
    """Yields empty folders, which are removed."""
    while True:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="less of everything, to see that it runs")
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often images are read and embedded; medians are shown"
    )
    arguments = parser.parse_args()
    quick = arguments.quick
    places = folders()
    read_and_embed(next(places), 100 if quick else 2_000, 1 if quick else arguments.rounds)
    cut_slides(next(places))
    pipeline(next(places), 2_000 if quick else 200_000)


if __name__ == "__main__":
    main()
