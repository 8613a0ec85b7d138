"""Scores neurons, channels and attention against the outlines of test slides, and draws them."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.analysis.localization import choose_random_neuron, relative_attention, score_pooled, score_slides, spread_out
from src.analysis.methods import CHANNEL, NEURON, RANDOM_NEURON, SINGLE, Method, read_methods, write_methods
from src.analysis.overlay import PatchMap, SlideImage, plot_overlay
from src.analysis.patch_figures import Exemplar, choose_exemplars, plot_exemplars, plot_patch_curves
from src.analysis.selection import best_neuron_ids
from src.data.current_inputs import CurrentInputs
from src.data.fold import FoldData, open_fold
from src.data.slides.patch_labels import OutlinedSlides
from src.data.slides.slide_files import find_slide, open_slide_images
from src.progress import track
from src.report.page import Page
from src.runs.rundir import RunDir
from src.stores.latents.source import LatentSource
from src.stores.latents.store import LatentStore

_LOGGER = logging.getLogger(__name__)
_EXEMPLAR_SIDE = 128
_RANKINGS = ("neurons", "channels")
# Colours begin at what every patch would get if all were equal.
_ATTENTION_SCALE: Any = {"scale": "Attention × number of patches", "floor": 1.0, "least_range": 1.0}


def missing_inputs(cfg: Any) -> list[str]:
    """Returns why slides cannot be scored against outlines; nothing when they can."""
    reasons = [
        f"dataset.{key} names no folder (got {cfg.dataset[key]})"
        for key in ("slides_dir", "annotations_dir")
        if cfg.dataset[key] is None or not Path(cfg.dataset[key]).is_dir()
    ]
    if cfg.dataset.positive_class is None:
        reasons.append("dataset.positive_class does not say which class is outlined")
    return reasons


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes the tables, curves, overlays and exemplars of the fold's test slides.

    Every method gives one score a patch, and all are scored on the same patches. Neurons and channels: their
    activation; the neuron and the channel head rankings made with slide labels of train slides only. Attention: its
    weight times the slide's number of patches, see `relative_attention`.

    Returns:
        `test/<method>_patch_auroc`, `test/<method>_patch_average_precision`, and the ids of what was chosen.

    Raises:
        ValueError: something was fitted on held-out cases, the patch size is not known, or no test slide has patches
            inside and outside of outlines.
    """
    local = cfg.localization
    fold = open_fold(cfg)
    truth = OutlinedSlides(
        cfg.dataset.annotations_dir, cfg.dataset.positive_class, local.label_rule, local.exclude_slides
    )
    of_csv = ("split train+val+test", "cases all", "labels test", "classes")
    rundir.record(*fold.inputs(*of_csv, "activations test"))
    rundir.record(*CurrentInputs(cfg).read("outlines test", "slides test"))
    scorer = _open_scorer(cfg, rundir, fold)
    unknown = {item_id: truth.why_unknown(fold.items[item_id]) for item_id in fold.split.test}
    left_out = {item_id: reason for item_id, reason in unknown.items() if reason}
    for item_id, reason in left_out.items():
        _LOGGER.warning("Left out test slide %s: %s.", item_id, reason)
    scored = [item_id for item_id in fold.split.test if item_id not in left_out]
    if not scored:
        raise ValueError(f"Expected test slides with outlines in {cfg.dataset.annotations_dir}, got none: {left_out}.")
    patches = pd.concat(
        [scorer.score(item_id, truth) for item_id in track(scored, "Scoring patches")], ignore_index=True
    )

    methods = scorer.methods
    write_methods(methods, rundir.table("methods"))
    pooled = score_pooled(patches, list(methods), local.n_bootstrap, cfg.seed)
    rundir.add_table("localization", pooled, "Every method on all patches.")
    by_slide = score_slides(patches, list(methods))
    rundir.add_table("localization_slides", by_slide, "Slide by slide.", 12)
    _draw_overlays(cfg, rundir, patches, by_slide, scorer, truth)
    caption = "All patches of the scored test slides. Dotted: chance."
    rundir.add_figure("patch_curves", plot_patch_curves(patches, methods), caption)
    _draw_exemplars(cfg, rundir, patches, scorer)
    scores: Any = pooled.set_index("method")
    results = {
        f"test/{method}_patch_{metric}": float(scores.loc[method, metric])
        for metric in ("auroc", "average_precision")
        for method in methods
    }
    _write_page(cfg, rundir, pooled, left_out, scorer)
    chosen = scorer.chosen
    return results | {
        "neuron_id": chosen.neurons[0],
        "random_neuron_id": chosen.random_neuron,
        "channel_id": chosen.channel,
    }


@dataclass(frozen=True)
class _Chosen:
    """What was chosen without looking at an outline: the best neurons, best first, a random one, the best channel."""

    neurons: list[int]
    random_neuron: int
    channel: int


@dataclass(frozen=True)
class _Scorer:
    """What gives the patches of a slide their scores."""

    fold: FoldData
    latents: LatentSource
    chosen: _Chosen
    methods: dict[str, Method]
    attention_dirs: dict[str, Path]
    patch_size_level0: int | None

    def score(self, item_id: str, truth: OutlinedSlides) -> pd.DataFrame:
        """Returns a row for each patch: item_id, x, y, size, label and a column a method."""
        coords = self.latents.coords(item_id)
        size = self.latents.items[item_id].patch_size_level0 or self.patch_size_level0
        if coords is None or size is None:
            raise ValueError(
                f"Expected level-0 coords and patch size of slide {item_id!r}, got {'none' if size else 'no size'}: "
                "looked in the latents, which have them from the feature file and from dataset.patches_dir. "
                "Give features with coords (h5), and dataset.patch_size_level0=<pixels>, then run task=encode again."
            )
        chosen = self.chosen
        columns = self.latents.rows(item_id).columns([chosen.neurons[0], chosen.random_neuron]).numpy()
        scores = {NEURON: columns[:, 0], RANDOM_NEURON: columns[:, 1]}
        scores[CHANNEL] = np.asarray(self.fold.store.rows(item_id)[:, chosen.channel])
        for method, folder in self.attention_dirs.items():
            scores[method] = relative_attention(np.load(folder / f"{item_id}.npy"))
        if wrong := {name: len(values) for name, values in scores.items() if len(values) != len(coords)}:
            raise ValueError(
                f"Expected {len(coords)} scores of slide {item_id!r}, one a patch, got {wrong}: the runs saw "
                "different features. Make them again with overwrite=true."
            )
        place = {"x": coords[:, 0], "y": coords[:, 1], "size": size}
        label = truth.label(item_id, coords, size)
        return pd.DataFrame({"item_id": item_id, "label": label, **place, **scores})


def _open_scorer(cfg: Any, rundir: RunDir, fold: FoldData) -> _Scorer:
    ranking, classifiers = rundir.upstream("select_neurons"), rundir.optional_upstream("train_mil")
    encoded = rundir.upstream("encode")
    for upstream in (encoded, ranking):
        rundir.refuse_leakage(upstream, fold.fitted("val+test"))
    known, attention_dirs = dict(SINGLE), {}
    if classifiers is None:
        _LOGGER.warning("Attention is not scored: no finished train_mil run. Make it with task=train_mil.")
    else:
        # Validation slides choose a classifier's weights, so that only test slides are new to it.
        rundir.refuse_leakage(classifiers, fold.fitted("test"))
        known |= read_methods(classifiers.table("methods"))
        folders = {name: classifiers.path / "attention" / name for name in known}
        attention_dirs = {name: folder for name, folder in folders.items() if folder.is_dir()}
    methods = {name: known[name] for name in (NEURON, CHANNEL, *attention_dirs, RANDOM_NEURON)}
    neurons, channels = (_read_ranking(ranking.table(name), cfg.dataset.positive_class) for name in _RANKINGS)
    best = best_neuron_ids(neurons, min(cfg.localization.n_exemplar_neurons, len(neurons)))
    density: Any = neurons.set_index("neuron_id")["density"]
    chosen = _Chosen(best, choose_random_neuron(density, best[0], cfg.seed), best_neuron_ids(channels, 1)[0])
    store = LatentStore(encoded.latents_dir())
    return _Scorer(fold, store, chosen, methods, attention_dirs, cfg.dataset.patch_size_level0)


def _read_ranking(path: Path, positive_class: str) -> pd.DataFrame:
    table: Any = pd.read_csv(path, dtype={"class": str})
    return table[table["class"] == positive_class] if "class" in table else table


def _draw_overlays(
    cfg: Any, rundir: RunDir, patches: pd.DataFrame, by_slide: pd.DataFrame, scorer: _Scorer, truth: OutlinedSlides
) -> None:
    """Draws outlined slides from all over the range of the neuron's per-slide AUROC, the median one first."""
    aurocs: Any = by_slide.set_index(["method", "item_id"])["auroc"]
    ranked = aurocs.loc[NEURON].sort_values(kind="stable").index.tolist()
    drawn: dict[str, Any] = {NEURON: {"scale": "Activation"}}
    drawn |= {name: _ATTENTION_SCALE for name in scorer.attention_dirs if scorer.methods[name].eats == "activations"}
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
        with open_slide_images(find_slide(cfg.dataset.slides_dir, item_id)) as images:
            slide = SlideImage(images.thumbnail(cfg.localization.thumbnail_size), images.size_level0, images.mpp)
        outlines = [polygon.points for polygon in truth.outlines(item_id)]
        figure = plot_overlay(slide, rows[["x", "y"]].to_numpy(), int(rows["size"].iloc[0]), maps, outlines)
        place = f"{ranked.index(item_id) + 1} of {len(ranked)} outlined slides, from the neuron's worst to its best"
        rundir.add_figure(f"overlay_{item_id}", figure, f"Test slide {item_id} ({place}); blue: the true outline.")


def _draw_exemplars(cfg: Any, rundir: RunDir, patches: pd.DataFrame, scorer: _Scorer) -> None:
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
            with open_slide_images(find_slide(cfg.dataset.slides_dir, item_id)) as images:
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


def _write_page(cfg: Any, rundir: RunDir, pooled: pd.DataFrame, left_out: dict[str, str], scorer: _Scorer) -> None:
    first: Any = pooled.iloc[0]
    chosen = scorer.chosen
    paragraphs = [
        f"Patches of {first['n_slides']} test slides ({first['n_outlined_slides']} with outlines) count as positive by "
        f"the rule '{cfg.localization.label_rule}': {first['n_positive']:,} of {first['n_patches']:,}. Neuron "
        f"{chosen.neurons[0]} and raw channel {chosen.channel} head rankings made with the labels of train slides; "
        f"neuron {chosen.random_neuron} was drawn at random among the active ones. Nothing was chosen by an outline.",
        "All patches are pooled, so scores must mean the same on every slide. Attention weights sum to one on each "
        "slide and are multiplied by its number of patches: 1 is as much as if all patches were equal. The columns "
        "mean_slide_* score each slide by itself and do not depend on that. Intervals: 95 % bootstrap over slides.",
    ]
    if not scorer.attention_dirs:
        paragraphs.append("Attention is not scored: there is no finished train_mil run with attention.")
    if left_out:
        paragraphs.append("Left out: " + "; ".join(f"{item_id}: {why}" for item_id, why in left_out.items()) + ".")
    aurocs = zip(pooled["method"].tolist(), pooled["auroc"].tolist(), strict=True)
    numbers = {f"{scorer.methods[method].label}, AUROC": auroc for method, auroc in aurocs}
    rundir.write_page(Page("Where it is in the image", paragraphs, numbers))
