"""Seconds to draw 100 neurons on 50 images: heatmaps, masks, and a contact sheet a neuron.

    python -m experiments.benchmarks.visualize [--images 600 --neurons 100 --drawn 50]

Images are JPEGs of 600 x 450 pixels, smooth noise with grain, of 16 x 16 tokens at L0 32; latents lie in a store sorted
by neuron, as task=encode leaves it. Timed is the drawing of task=visualize, with choosing the images of the
sheets, reading latents, decoding, and writing every file.
"""

import argparse
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from src.analysis.box_scores import MaskRule
from src.analysis.boxed_images import ImageSet
from src.analysis.concept_maps import Grid
from src.analysis.gallery import Gallery
from src.data.images.source import ImageSource
from src.models.backbones.preprocessing import seen_window
from src.ops.sparse_latents import SparseLatents
from src.runs.rundir import RunDir
from src.stores.latents.index import LatentItem
from src.stores.latents.store import LatentStore
from src.stores.latents.writer import LatentWriter
from src.tasks.visualize import choose_images, draw_images, plan_sheets, write_sheets

HEIGHT, WIDTH, SIDE, N_LATENTS, L0 = 450, 600, 16, 6144, 32


def write_images(folder: Path, n_images: int) -> list[str]:
    """Writes smooth noise as JPEG, which compresses as photographs do, and the csv that lists it."""
    rng = np.random.default_rng(0)
    lines = ["image_id,path"]
    for number in range(n_images):
        small = Image.fromarray(rng.integers(0, 256, (HEIGHT // 10, WIDTH // 10, 3), np.uint8))
        noise = rng.normal(0, 6, (HEIGHT, WIDTH, 3))
        pixels = np.clip(np.asarray(small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) + noise, 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"i{number}.jpg", quality=90)
        lines.append(f"i{number},i{number}.jpg")
    (folder / "images.csv").write_text("\n".join(lines) + "\n")
    return [f"i{number}" for number in range(n_images)]


def write_latents(folder: Path, item_ids: list[str], n_neurons: int) -> LatentStore:
    """Writes latents in which half of a token's entries are of the first `n_neurons` neurons."""
    rng = np.random.default_rng(0)
    writer = LatentWriter(folder, N_LATENTS, [LatentItem(item_id, 0, SIDE**2) for item_id in item_ids])
    # Strides in place of draws without replacement: as many entries, made quickly.
    often = (np.arange(L0 // 2) * (n_neurons // (L0 // 2)))[None]
    rare = n_neurons + (np.arange(L0 // 2) * ((N_LATENTS - n_neurons) // (L0 // 2)))[None]
    for _ in item_ids:
        shifts = rng.integers(0, n_neurons // (L0 // 2), (SIDE**2, 1))
        ids = np.concatenate([often + shifts, rare + shifts], axis=1)
        flat = torch.from_numpy((np.arange(SIDE**2)[:, None] * N_LATENTS + ids).reshape(-1))
        values = torch.from_numpy(rng.random(len(flat), np.float32))
        writer.append(SparseLatents.from_flat_ids(flat, values, (SIDE**2, N_LATENTS)))
    return writer.finish()


def main() -> None:
    """Draws, and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--neurons", type=int, default=100)
    parser.add_argument("--drawn", type=int, default=50)
    parser.add_argument("--longest-side", type=int, default=256)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.3])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        item_ids = write_images(folder, arguments.images)
        latents = write_latents(folder / "latents", item_ids, arguments.neurons)
        started, cpu_started = time.perf_counter(), time.process_time()
        neuron_ids = list(range(arguments.neurons))
        maxima = latents.item_maxima(neuron_ids, item_ids).max(axis=0).tolist()
        window = partial(seen_window, input_size=(224, 224), resize="crop", crop_pct=0.875)
        images = ImageSet(ImageSource(folder / "images.csv", folder), window)
        rule, grid = MaskRule(tuple(arguments.thresholds)), Grid(SIDE, SIDE)
        rundir = RunDir(folder / "run")
        of_neurons = dict(zip(neuron_ids, maxima, strict=True))
        gallery = Gallery(rundir.path, rule, of_neurons, grid, window, arguments.longest_side)
        labels = dict.fromkeys(item_ids, "image")
        plan = plan_sheets(latents, neuron_ids, item_ids, n=6, seed=0)
        planned = time.perf_counter()
        drawn = draw_images(latents, gallery, images, labels, choose_images(labels, arguments.drawn, seed=0), plan)
        gallery.write_results(drawn)
        pictured = time.perf_counter()
        write_sheets(rundir, dict.fromkeys(neuron_ids, "best"), plan, drawn)
        ended, cpu_ended = time.perf_counter(), time.process_time()
        files = [path for path in folder.joinpath("run").rglob("*") if path.is_file()]
        suffixes, megabytes = Counter(path.suffix for path in files), sum(path.stat().st_size for path in files) / 1e6
    print(
        f"{arguments.neurons} neurons x {arguments.drawn} images, {len(drawn)} images decoded, "
        f"{suffixes['.png']} pictures, {megabytes:.0f} MB"
    )
    for name, seconds in (
        ("choosing", planned - started),
        ("pictures", pictured - planned),
        ("sheets", ended - pictured),
    ):
        print(f"{name:<10}{seconds:>8.1f} s")
    print(f"{'all':<10}{ended - started:>8.1f} s, of {cpu_ended - cpu_started:.1f} s CPU time")


if __name__ == "__main__":
    main()
