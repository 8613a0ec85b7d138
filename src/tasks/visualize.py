"""Draws neurons on images: heatmaps, masks and contact sheets; scores them against boxes where there are any."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd

from src.analysis.box_scores import MaskRule
from src.analysis.boxed_images import ImageSet
from src.analysis.class_statistics import rank_neurons_for_classes, read_class_statistics
from src.analysis.concept_maps import Grid, token_grid
from src.analysis.contact_sheet import choose_sheet_items, draw_sheet
from src.analysis.gallery import Drawn, Gallery, Subject
from src.analysis.neuron_pictures import encode_png
from src.analysis.selection import best_neuron_ids
from src.csv_tables import some
from src.data.current_inputs import CurrentInputs
from src.data.fold import FoldData, open_fold
from src.data.images.boxes import read_boxes
from src.data.images.source import open_images
from src.files import write_atomically
from src.inputs import file_input
from src.models.backbones.preprocessing import seen_window
from src.models.backbones.spec import CROP_PCT, IMAGE_SIZE, POOLED, RESIZE, size_pair
from src.prefetch import prefetch
from src.progress import track
from src.records import ALL
from src.report.page import Page, PageFigure
from src.runs.rundir import RunDir
from src.stores.latents.source import LatentSource
from src.tasks.upstream_latents import open_upstream_latents
from src.tasks.visualized_boxes import boxes_file, compare_boxes

_N_WORKERS = 4  # threads that decode, draw, compress and write
_USUAL_N_IMAGES = 8
_N_SHEETS_ON_PAGE = 12
_UNLABELLED = "unlabelled"

Plan = Mapping[int, Mapping[str, Sequence[str]]]
"""The images on each neuron's contact sheet, by the title of their row."""


def missing_inputs(cfg: Any) -> list[str]:
    """Returns why neurons cannot be drawn; nothing when they can."""
    reasons = []
    if cfg.dataset.get("images_dir") is None:
        reasons.append("dataset.images_dir names no folder of images")
    if (tokens := cfg.backbone.get("tokens")) in POOLED:
        reasons.append(f"backbone.tokens={tokens} gives rows without a place in the image (patch and all have one)")
    has_ranking = cfg.visualize.choose == "ranking" and cfg.get("ranking_run") is not None
    if cfg.fold == ALL and not cfg.visualize.neurons and not has_ranking:
        reasons.append("fold=all has no train items to choose neurons by: give visualize.neurons or ranking_run")
    if find_spec("cv2") is None:
        reasons.append("OpenCV is not installed: pip install opencv-python-headless")
    return reasons


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Draws the chosen neurons, and scores them against boxes.

    Writes `visuals_mask_th=<t>/` (see `Gallery`), `plots/neuron_<id>.png` (contact sheets),
    `analysis/visualized_neurons.csv`, and with boxes `analysis/boxes.csv` and `analysis/box_search.csv`.

    Returns:
        `n_neurons`, `n_images`, and with boxes `test/<label>/<kind>_pointing_accuracy`, `_mask_iou` and `_box_iou`.

    Raises:
        ValueError: when a neuron, a class or so many images do not exist, rows have no place in the image, a box lies
            outside of its image, or something was fitted on held-out cases.
    """
    if reasons := missing_inputs(cfg):
        raise ValueError(f"Expected images whose tokens can be drawn, got: {'; '.join(reasons)}.")
    visual = cfg.visualize
    fold = open_fold(cfg)
    whats = ("split train+val+test", "cases all", "labels all", "classes", "activations all")
    rundir.record(*fold.inputs(*whats), *CurrentInputs(cfg).read("images all"))
    latents = open_upstream_latents(cfg, rundir, fold, "val+test", visual.source)
    candidates = _candidates(fold, visual)
    grid = token_grid(fold.spec, latents.items[candidates[0]].n_rows)
    neurons = _choose_neurons(cfg, rundir, fold, latents)
    neuron_ids = list(neurons)
    # Items of fold=all are not split: what is shown stands for the data set.
    maxima = latents.item_maxima(neuron_ids, fold.split.train or candidates).max(axis=0)
    boxes = {}
    if boxes_file(cfg).is_file():
        rundir.record(file_input("file", boxes_file(cfg), name="boxes"))
        boxes = read_boxes(cfg.dataset)
    images = ImageSet(open_images(cfg.dataset), _seen_window(cfg.backbone), boxes)
    rule = MaskRule(tuple(visual.thresholds), visual.scale, visual.interpolation, visual.min_box_area)

    of_neurons = dict(zip(neuron_ids, maxima.tolist(), strict=True))
    gallery = Gallery(rundir.path, rule, of_neurons, grid, images.window, visual.longest_side)
    labels = {item_id: fold.items[item_id].label or _UNLABELLED for item_id in candidates}
    written = choose_images(labels, visual.n_images, cfg.seed)
    plan = plan_sheets(latents, neuron_ids, candidates, visual.n_sheet_images, cfg.seed)
    drawn = draw_images(latents, gallery, images, labels, written, plan)
    gallery.write_results(drawn)
    figures = write_sheets(rundir, neurons, plan, drawn)
    table = pd.DataFrame({"neuron_id": neuron_ids, "chosen_as": list(neurons.values()), "max": maxima})
    rundir.add_table("visualized_neurons", table, "The neurons drawn; max: over train images.", 20)
    results: dict[str, float] = {"n_neurons": len(neuron_ids), "n_images": len(written)}
    paragraphs = [_about(visual, grid, len(written))]
    if boxes:
        scores, about = compare_boxes(cfg, rundir, fold, latents, neuron_ids, grid, rule, images)
        results |= scores
        paragraphs += about
    numbers = {key: value for key, value in results.items() if "_iou" not in key}  # those are in the table
    rundir.write_page(Page("Neurons on images", paragraphs, numbers, figures[:_N_SHEETS_ON_PAGE]))
    return results


def choose_images(labels: Mapping[str, str], n_images: int | None, seed: int) -> list[str]:
    """Returns images to draw, in an order drawn at random, the classes in turn.

    Args:
        labels: the class of each image.
        n_images: how many; None: 8, or all where there are fewer.
        seed: of the draw.

    Raises:
        ValueError: when there are not so many.
    """
    if n_images is not None and n_images > len(labels):
        raise ValueError(
            f"Expected visualize.n_images to be at most the {len(labels)} images of visualize.split and "
            f"visualize.class_filter, got {n_images}."
        )
    table = pd.DataFrame({"item_id": list(labels), "label": list(labels.values())})
    table = table.iloc[np.random.default_rng(seed).permutation(len(table))]
    turns = table.assign(turn=table.groupby("label").cumcount()).sort_values(["turn", "label"], kind="stable")
    return turns["item_id"].tolist()[: _USUAL_N_IMAGES if n_images is None else n_images]


def _candidates(fold: FoldData, visual: Any) -> list[str]:
    """Returns the images of `visualize.split` that are of the classes asked for."""
    wanted, classes = list(visual.class_filter), fold.classes
    if unknown := sorted(set(wanted) - set(classes)):
        raise ValueError(
            f"Expected visualize.class_filter to name classes among {', '.join(classes)}, got {some(unknown)}."
        )
    listed = fold.split.item_ids(visual.split)
    found = [item_id for item_id in listed if not wanted or fold.items[item_id].label in wanted]
    if not found:
        raise ValueError(
            f"Expected images of visualize.split={visual.split} and visualize.class_filter={wanted} in fold "
            f"{fold.split.fold}, got none."
        )
    return found


def _choose_neurons(cfg: Any, rundir: RunDir, fold: FoldData, latents: LatentSource) -> dict[int, str]:
    """Returns the neurons to draw, each with the reason."""
    visual = cfg.visualize
    if visual.neurons:
        if wrong := [one for one in visual.neurons if not 0 <= one < latents.n_latents]:
            raise ValueError(f"Expected visualize.neurons within 0:{latents.n_latents}, got {wrong}.")
        return dict.fromkeys(visual.neurons, "asked for")
    held_out = fold.fitted("val+test")
    if visual.choose == "ranking":
        ranking = pd.read_csv(rundir.trusted_upstream("select_neurons", held_out).table("neurons"))
        ids = best_neuron_ids(ranking, visual.n_neurons)
        return {neuron_id: f"rank {rank}" for rank, neuron_id in enumerate(ids, 1)}
    summary = rundir.trusted_upstream("summarize_latents", held_out)
    statistics = read_class_statistics(summary.path / "analysis" / "class_statistics.npz")
    ranked = rank_neurons_for_classes(statistics, visual.class_rule)
    reasons: dict[int, list[str]] = {}
    for name, ids in zip(statistics.classes, ranked[:, : visual.n_neurons].tolist(), strict=True):
        for rank, neuron_id in enumerate(ids, 1):
            reasons.setdefault(neuron_id, []).append(f"rank {rank} of {name}")
    return {neuron_id: ", ".join(those) for neuron_id, those in reasons.items()}


def plan_sheets(latents: LatentSource, neuron_ids: Sequence[int], item_ids: Sequence[str], n: int, seed: int) -> Plan:
    """Returns the images to show of each neuron; see `choose_sheet_items`."""
    maxima = latents.item_maxima(neuron_ids, item_ids)
    return {
        neuron_id: {
            title: [item_ids[position] for position in positions]
            for title, positions in choose_sheet_items(maxima[:, column], n, seed).items()
        }
        for column, neuron_id in enumerate(neuron_ids)
    }


def draw_images(
    latents: LatentSource,
    gallery: Gallery,
    images: ImageSet,
    labels: Mapping[str, str],
    written: Sequence[str],
    plan: Plan,
) -> list[Drawn]:
    """Draws all pictures and tiles; each image is decoded once."""
    on_sheets: dict[str, set[int]] = {}
    for neuron_id, rows in plan.items():
        for item_id in (item_id for item_ids in rows.values() for item_id in item_ids):
            on_sheets.setdefault(item_id, set()).add(neuron_id)

    def task(item_id: str) -> Callable[[], Drawn]:
        own = frozenset(on_sheets.get(item_id, ()))
        neuron_ids = list(gallery.maxima) if item_id in written else sorted(own)
        values = latents.rows(item_id).columns(neuron_ids).numpy()
        edges, is_written = images.edges(item_id), item_id in written
        subject = Subject(item_id, labels[item_id], neuron_ids, values, edges, is_written, own)
        return lambda: gallery.draw(images.source.read(item_id), subject)

    needed = [item_id for item_id in labels if item_id in written or item_id in on_sheets]
    return list(track(prefetch(map(task, needed), _N_WORKERS, 2 * _N_WORKERS), "Drawing images", len(needed)))


def write_sheets(rundir: RunDir, neurons: Mapping[int, str], plan: Plan, drawn: Sequence[Drawn]) -> list[PageFigure]:
    """Writes a contact sheet a neuron."""
    tiles = {one.subject.item_id: one.tiles for one in drawn}

    def task(neuron_id: int) -> Callable[[], bytes]:
        rows = [(title, [tiles[one][neuron_id] for one in items]) for title, items in plan[neuron_id].items()]
        return lambda: encode_png(draw_sheet(f"Neuron {neuron_id} ({neurons[neuron_id]})", rows))

    figures = []
    sheets = prefetch(map(task, neurons), _N_WORKERS, 2 * _N_WORKERS)
    for (neuron_id, reason), sheet in zip(neurons.items(), sheets, strict=True):
        path = rundir.plot(f"neuron_{neuron_id}")
        with write_atomically(path) as temporary:
            temporary.write_bytes(sheet)
        caption = (
            f"Neuron {neuron_id}, {reason}: images on which it fires most, about its median, and drawn at random. "
            "Below each the heatmap, with the contour of the mask; the number is its maximum on the image."
        )
        figures.append(PageFigure(path, caption))
    return figures


def _seen_window(backbone: Any) -> Any:
    """Returns what gives the part of an image that the configured backbone sees."""
    input_size = size_pair(backbone.get("image_size", IMAGE_SIZE))
    resize, crop_pct = backbone.get("resize", RESIZE), backbone.get("crop_pct", CROP_PCT)
    return partial(seen_window, input_size=input_size, resize=resize, crop_pct=crop_pct)


def _about(visual: Any, grid: Grid, n_images: int) -> str:
    shares = {"neuron": " of its maximum over train images", "image": " of its maximum on the image", "absolute": ""}
    levels = " or ".join(f"{threshold:g}" for threshold in visual.thresholds)
    return (
        f"Maps of {grid.rows}x{grid.columns} tokens, drawn over the part of the images that the model saw "
        f"({visual.interpolation}). A neuron's mask is where it exceeds {levels}{shares[visual.scale]}. {n_images} "
        f"images of {visual.split} with heatmaps and masks of every neuron lie in the run's folders "
        "visuals_mask_th=<threshold>."
    )
