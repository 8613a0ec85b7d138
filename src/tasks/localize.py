"""Scores neurons, channels and slide classifiers against the regions of test slides, and draws them."""

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.analysis.froc import Detections, detect, find_lesions, find_peaks
from src.analysis.localization import PatchScoring, compare_methods, score_pooled, score_slides, spread_out
from src.analysis.methods import NEURON, write_methods
from src.analysis.overlay import PatchMap, SlideImage, plot_overlay
from src.analysis.patch_figures import Exemplar, choose_exemplars, plot_exemplars, plot_froc, plot_patch_curves
from src.analysis.patch_metrics import best_threshold
from src.csv_tables import read_table
from src.data.current_inputs import CurrentInputs
from src.data.fold import FoldData, open_fold
from src.data.slides.annotation_files import write_geojson
from src.data.slides.patch_labels import OutlinedSlides
from src.data.slides.patch_map import patch_features
from src.data.slides.slide_files import find_slide, open_slide, open_slide_images, stated_mpp
from src.data.strata import read_strata
from src.progress import track
from src.report.page import Page
from src.runs.rundir import RunDir
from src.tasks.upstream_patch_scores import PatchScorer, open_scorer

_LOGGER = logging.getLogger(__name__)
_EXEMPLAR_SIDE = 128
# Colours begin at what every patch would get if all were equal.
_ATTENTION_SCALE: Any = {"scale": "Attention × number of patches", "floor": 1.0, "least_range": 1.0}


def missing_inputs(cfg: Any) -> list[str]:
    """Returns why slides cannot be scored against regions; nothing when they can."""
    reasons = []
    annotations = cfg.dataset.annotations_dir
    if annotations is None or not Path(annotations).is_dir():
        reasons.append(f"dataset.annotations_dir names no folder (got {annotations})")
    if cfg.dataset.positive_class is None:
        reasons.append("dataset.positive_class does not say which class is outlined")
    return reasons


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes the tables, curves, overlays, exemplars and QuPath maps of the fold's test slides.

    Every method gives one score a patch, and all are scored on the same patches. Neurons and channels: their
    activation; the neuron and the channel head rankings made with slide labels of train slides only. Attention: its
    weight times the slide's number of patches, see `relative_attention`. Instance scores: a patch's own log-odds.
    Thresholds are tuned on validation slides. Where there are no slides, maps are drawn from coords alone.

    Returns:
        `test/<method>_patch_<metric>` for auroc, average_precision, f1, dice and froc, and the ids of what was chosen.

    Raises:
        ValueError: something was fitted on held-out cases, the patch size is not known, or no test slide has patches
            inside and outside of regions.
    """
    local = cfg.localization
    fold = open_fold(cfg)
    slides_dir = _slides_dir(cfg)
    truth = _open_truth(cfg, fold, slides_dir)
    of_csv = ("split train+val+test", "cases all", "labels val+test", "classes")
    rundir.record(*fold.inputs(*of_csv, "activations val+test"))
    rundir.record(*CurrentInputs(cfg).read("outlines val+test", *([] if slides_dir is None else ["slides test"])))
    scorer = open_scorer(cfg, rundir, fold)
    left_out: dict[str, str] = {}
    patches, tuning = (_score(fold, part, scorer, truth, left_out) for part in ("test", "val"))
    if patches.empty:
        raise ValueError(f"Expected test slides with outlines in {cfg.dataset.annotations_dir}, got none: {left_out}.")

    methods = scorer.methods
    write_methods(methods, rundir.table("methods"))
    thresholds = {}
    if len(tuning):
        inside = tuning["label"].to_numpy(bool)
        thresholds = {name: best_threshold(tuning[name].to_numpy(np.float64), inside) for name in methods}
    mpp = _mpp(local.mpp, slides_dir, patches["item_id"].iloc[0])
    detections = _detect(patches, scorer, truth, mpp)
    scoring = PatchScoring(thresholds, local.specificity, detections, local.n_bootstrap, cfg.seed)
    pooled = score_pooled(patches, list(methods), scoring)
    rundir.add_table("localization", pooled, "Every method on all patches.")
    compared = compare_methods(patches, list(methods))
    rundir.add_table("localization_pairs", compared, "The neuron's AUROC against the others' (DeLong, by slide).")
    by_slide = score_slides(patches, list(methods))
    rundir.add_table("localization_slides", by_slide, "Slide by slide.", 12)
    _draw_overlays(cfg, rundir, patches, by_slide, scorer, truth, slides_dir)
    caption = "All patches of the scored test slides. Bands: 95 % bootstrap over slides. Dotted: chance."
    rundir.add_figure("patch_curves", plot_patch_curves(patches, methods, seed=cfg.seed), caption)
    caption = "Lesions found against false detections a slide (CAMELYON16's definition)."
    rundir.add_figure("froc", plot_froc(detections, methods), caption)
    if slides_dir is None:
        _LOGGER.info("No exemplars: there are no slides to cut patches from (dataset.slides_dir).")
    else:
        _draw_exemplars(cfg, rundir, patches, scorer, slides_dir)
    if local.geojson:
        _write_maps(rundir, patches, scorer.chosen.neurons[0])
    scores: Any = pooled.set_index("method")
    results = {
        f"test/{method}_patch_{metric}": float(scores.loc[method, metric])
        for metric in ("auroc", "average_precision", "f1", "dice", "froc")
        for method in methods
    }
    _write_page(cfg, rundir, pooled, left_out, scorer, mpp)
    chosen = scorer.chosen
    results |= {"neuron_id": chosen.neurons[0], "random_neuron_id": chosen.random_neuron}
    return results if chosen.channel is None else results | {"channel_id": chosen.channel}


def _slides_dir(cfg: Any) -> Path | None:
    folder = cfg.dataset.slides_dir
    if folder is None or not Path(folder).is_dir():
        _LOGGER.warning("No slides at dataset.slides_dir=%s: maps are drawn from coords, without exemplars.", folder)
        return None
    return Path(folder)


def _open_truth(cfg: Any, fold: FoldData, slides_dir: Path | None) -> OutlinedSlides:
    local, dataset = cfg.localization, cfg.dataset
    providers = {}
    if local.provider_column in read_table(dataset.metadata_csv):
        item_ids = fold.split.item_ids("val+test")
        values = read_strata(dataset.metadata_csv, [local.provider_column], item_ids)
        providers = dict(zip(item_ids, values, strict=True))
    known = (local.exclude_slides, local.positive_groups, providers, slides_dir)
    return OutlinedSlides(dataset.annotations_dir, dataset.positive_class, local.label_rule, *known)


def _score(
    fold: FoldData, part: str, scorer: PatchScorer, truth: OutlinedSlides, left_out: dict[str, str]
) -> pd.DataFrame:
    """Returns the scores of all patches of a part's slides; notes of test slides why they are left out."""
    scored = []
    for item_id in fold.split.item_ids(part):
        reason = truth.why_unknown(fold.items[item_id])
        if reason is None:
            scored.append(item_id)
        elif part == "test":
            left_out[item_id] = reason
            _LOGGER.warning("Left out test slide %s: %s.", item_id, reason)
    if part == "val" and not any(truth.regions(item_id).bounds is not None for item_id in scored):
        _LOGGER.warning("No threshold is tuned, and no F1 and Dice given: no validation slide has regions.")
        return pd.DataFrame()
    tables = [scorer.score(item_id, truth) for item_id in track(scored, f"Scoring {part} patches")]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _mpp(given: float | None, slides_dir: Path | None, item_id: str) -> float | None:
    """Returns the micrometres a level-0 pixel: those given, else those that a slide states."""
    if given is not None or slides_dir is None:
        return given
    with suppress(FileNotFoundError), open_slide(find_slide(slides_dir, item_id)) as slide:
        return stated_mpp(slide)
    return None


def _detect(
    patches: pd.DataFrame, scorer: PatchScorer, truth: OutlinedSlides, mpp: float | None
) -> dict[str, Detections]:
    """Returns the detections of every method: the peaks of its map that say more than its lowest score."""
    found: dict[str, list[Any]] = {name: [] for name in scorer.methods}
    lowest = {name: patches[name].min() for name in found}
    for item_id, rows in patches.groupby("item_id", sort=False):
        size = int(rows["size"].iloc[0])
        lesions = find_lesions(truth.regions(str(item_id)), size, mpp)
        coords = rows[["x", "y"]].to_numpy()
        for name, of_slides in found.items():
            scores = rows[name].to_numpy(np.float64)
            peaks = find_peaks(coords, size, scores)
            peaks = peaks[scores[peaks] > lowest[name]]
            of_slides.append((lesions, coords[peaks] + size / 2, scores[peaks]))
    return {name: detect(of_slides) for name, of_slides in found.items()}


def _draw_overlays(
    cfg: Any,
    rundir: RunDir,
    patches: pd.DataFrame,
    by_slide: pd.DataFrame,
    scorer: PatchScorer,
    truth: OutlinedSlides,
    slides_dir: Path | None,
) -> None:
    """Draws outlined slides from all over the range of the neuron's per-slide AUROC, the median one first."""
    aurocs: Any = by_slide.set_index(["method", "item_id"])["auroc"]
    ranked = aurocs.loc[NEURON].sort_values(kind="stable").index.tolist()
    drawn: dict[str, Any] = {NEURON: {"scale": "Activation"}}
    drawn |= {name: _ATTENTION_SCALE for name in scorer.attention if scorer.methods[name].eats == "activations"}
    titles = {name: method.label for name, method in scorer.methods.items()}
    titles[NEURON] = f"Neuron {scorer.chosen.neurons[0]}"
    for item_id in spread_out(ranked, cfg.localization.n_overlays):
        rows: Any = patches[patches["item_id"] == item_id]
        maps = [
            PatchMap(
                f"{titles[method]}\nAUROC {aurocs[method, item_id]:.3f} on this slide",
                scores=rows[method].to_numpy(),
                **scale,
            )
            for method, scale in drawn.items()
        ]
        slide = None
        if slides_dir is not None:
            with open_slide_images(find_slide(slides_dir, item_id)) as images:
                slide = SlideImage(images.thumbnail(cfg.localization.thumbnail_size), images.size_level0, images.mpp)
        outlines = truth.regions(item_id).outlines()
        figure = plot_overlay(slide, rows[["x", "y"]].to_numpy(), int(rows["size"].iloc[0]), maps, outlines)
        place = f"{ranked.index(item_id) + 1} of {len(ranked)} outlined slides, from the neuron's worst to its best"
        rundir.add_figure(f"overlay_{item_id}", figure, f"Test slide {item_id} ({place}); blue: the true outline.")


def _draw_exemplars(cfg: Any, rundir: RunDir, patches: pd.DataFrame, scorer: PatchScorer, slides_dir: Path) -> None:
    """Draws the patches of test slides on which the best neurons are most active."""
    local = cfg.localization
    rows = []
    neurons = scorer.chosen.neurons
    of_item: dict[Any, Any] = dict(list(patches.groupby("item_id")))
    for rank, neuron_id in enumerate(neurons, start=1):
        places = scorer.latents.places(neuron_id, item_ids=of_item)
        exemplars = []
        for best in choose_exemplars(places.item_ids, local.n_exemplars, local.max_exemplars_per_slide):
            item_id = places.item_ids[best]
            patch = of_item[item_id].iloc[places.rows[best]]
            with open_slide_images(find_slide(slides_dir, item_id)) as images:
                pixels = images.patch(patch["x"], patch["y"], patch["size"], _EXEMPLAR_SIDE)
            exemplars.append(Exemplar(pixels, item_id, patch["label"]))
        if exemplars:
            rows.append((f"Neuron {neuron_id} (rank {rank})", exemplars))
    if not rows:
        _LOGGER.warning("No exemplars: neurons %s are silent on all scored test slides.", neurons)
        return
    caption = (
        f"Test patches on which the best neurons are most active, at most {local.max_exemplars_per_slide} of a slide; "
        "orange frame: inside a true outline."
    )
    rundir.add_figure("exemplars", plot_exemplars(rows), caption)


def _write_maps(rundir: RunDir, patches: pd.DataFrame, neuron_id: int) -> None:
    """Writes where the neuron fires on each test slide, `geojson/<slide_id>.geojson`, for QuPath."""
    for item_id, rows in patches.groupby("item_id", sort=False):
        active: Any = rows[rows[NEURON] > 0]
        features = patch_features(
            active[["x", "y"]].to_numpy(), int(rows["size"].iloc[0]), active[NEURON].to_numpy(), f"neuron {neuron_id}"
        )
        write_geojson(rundir.path / "geojson" / f"{item_id}.geojson", features)


def _write_page(
    cfg: Any, rundir: RunDir, pooled: pd.DataFrame, left_out: dict[str, str], scorer: PatchScorer, mpp: float | None
) -> None:
    first: Any = pooled.iloc[0]
    chosen, local = scorer.chosen, cfg.localization
    paragraphs = [
        f"Patches of {first['n_slides']} test slides ({first['n_outlined_slides']} with outlines) count as positive by "
        f"the rule '{local.label_rule}': {first['n_positive']:,} of {first['n_patches']:,}. Neuron "
        f"{chosen.neurons[0]} heads the ranking made with the labels of train slides"
        + ("" if chosen.channel is None else f", raw channel {chosen.channel} that of channels")
        + "; "
        f"neuron {chosen.random_neuron} was drawn at random among the active ones. Nothing was chosen by an outline "
        "of a test slide.",
        "All patches are pooled, so scores must mean the same on every slide. Attention weights sum to one on each "
        "slide and are multiplied by its number of patches: 1 is as much as if all patches were equal. The columns "
        "mean_slide_* score each slide by itself and do not depend on that. Intervals: 95 % bootstrap over slides.",
        f"F1 and Dice use each method's threshold of the largest F1 on validation slides; sensitivity is read at a "
        f"specificity of {local.specificity:g}. FROC: the share of {first['n_lesions']} lesions found at 1/4 to 8 false"
        " detections a slide, on average; "
        + (
            "lesions within 75 µm are one, and isolated tumour cells (below 275 µm) do not count."
            if mpp is not None
            else "micrometres are not known (localization.mpp), so lesions that touch are one, and all count."
        ),
    ]
    if not scorer.is_scored_by_classifiers:
        paragraphs.append("Attention is not scored: there is no finished train_mil run with attention.")
    if left_out:
        paragraphs.append("Left out: " + "; ".join(f"{item_id}: {why}" for item_id, why in left_out.items()) + ".")
    aurocs = zip(pooled["method"].tolist(), pooled["auroc"].tolist(), strict=True)
    numbers = {f"{scorer.methods[method].label}, AUROC": auroc for method, auroc in aurocs}
    rundir.write_page(Page("Where it is in the image", paragraphs, numbers))
