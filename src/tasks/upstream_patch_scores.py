"""The scores that neurons, channels and slide classifiers give the patches of a slide, from the runs that made them."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.analysis.localization import choose_random_neuron, relative_attention
from src.analysis.methods import CHANNEL, NEURON, RANDOM_NEURON, SINGLE, Method, read_methods
from src.analysis.selection import best_neuron_ids
from src.data.fold import FoldData
from src.data.slides.patch_labels import OutlinedSlides
from src.runs.rundir import RunDir
from src.stores.latents.source import LatentSource
from src.stores.latents.store import LatentStore
from src.stores.patch_scores import PatchScores, read_patch_scores

_LOGGER = logging.getLogger(__name__)
_INSTANCES = "_instances"


@dataclass(frozen=True)
class Chosen:
    """What was chosen without looking at an outline: the best neurons, best first, a random one, the best channel.

    The channel is None where channels were not ranked.
    """

    neurons: list[int]
    random_neuron: int
    channel: int | None


@dataclass(frozen=True)
class PatchScorer:
    """What gives the patches of a slide their scores.

    Attributes:
        fold: the fold.
        latents: of its slides.
        chosen: see `Chosen`.
        methods: what is scored, by name, in the order of tables: neuron, channel, attention of each classifier,
            instance scores (`<method>_instances`), random neuron.
        positive_class: whose attention and instance scores are meant.
        classifiers: by name.
        patch_size_level0: that of the configuration, for latents that do not say.
    """

    fold: FoldData
    latents: LatentSource
    chosen: Chosen
    methods: dict[str, Method]
    positive_class: str
    classifiers: Mapping[str, Mapping[str, PatchScores]]
    patch_size_level0: int | None

    @property
    def attention(self) -> list[str]:
        """The methods that are attention."""
        return [name for name in self.methods if name in self.classifiers]

    @property
    def is_scored_by_classifiers(self) -> bool:
        """Whether any classifier says something of patches."""
        return bool(self.classifiers)

    def size_level0(self, item_id: str) -> int:
        """Returns the edge of a slide's patches in level-0 pixels."""
        size = self.latents.items[item_id].patch_size_level0 or self.patch_size_level0
        if size is None or self.latents.coords(item_id) is None:
            raise ValueError(
                f"Expected level-0 coords and patch size of slide {item_id!r}, got {'none' if size else 'no size'}: "
                "looked in the latents, which have them from the feature file and from dataset.patches_dir. "
                "Give features with coords (h5), and dataset.patch_size_level0=<pixels>, then run task=encode again."
            )
        return size

    def score(self, item_id: str, truth: OutlinedSlides) -> pd.DataFrame:
        """Returns a row for each patch: item_id, x, y, size, label, coverage and a column a method."""
        size, coords = self.size_level0(item_id), np.asarray(self.latents.coords(item_id))
        chosen = self.chosen
        columns = self.latents.rows(item_id).columns([chosen.neurons[0], chosen.random_neuron]).numpy()
        scores: dict[str, Any] = {NEURON: columns[:, 0]}
        if chosen.channel is not None:
            scores[CHANNEL] = np.asarray(self.fold.store.rows(item_id)[:, chosen.channel])
        for name in self.methods:
            classifier = self.classifiers.get(name.removesuffix(_INSTANCES))
            if classifier is None:
                continue
            if item_id not in classifier:
                scores[name] = ()
            elif name in self.classifiers:
                attention: Any = classifier[item_id].attention_of(self.positive_class)
                scores[name] = relative_attention(attention)
            else:
                scores[name] = classifier[item_id].instance_scores_of(self.positive_class)
        scores[RANDOM_NEURON] = columns[:, 1]
        if wrong := {name: len(values) for name, values in scores.items() if len(values) != len(coords)}:
            raise ValueError(
                f"Expected {len(coords)} scores of slide {item_id!r}, one a patch, got {wrong}: the runs saw "
                "different features. Make them again with overwrite=true."
            )
        known = {"x": coords[:, 0], "y": coords[:, 1], "size": size, "label": truth.label(item_id, coords, size)}
        known["coverage"] = truth.regions(item_id).coverage(coords, size)
        return pd.DataFrame({"item_id": item_id, **known, **scores})


def open_scorer(cfg: Any, rundir: RunDir, fold: FoldData) -> PatchScorer:
    """Opens what scores the fold's patches.

    Raises:
        ValueError: when something was fitted on cases that are held out here.
    """
    ranking, trained = rundir.upstream("select_neurons"), rundir.optional_upstream("train_mil")
    encoded = rundir.upstream("encode")
    for upstream in (encoded, ranking):
        rundir.refuse_leakage(upstream, fold.fitted("val+test"))
    known, classifiers = dict(SINGLE), {}
    if trained is None:
        _LOGGER.warning("Attention is not scored: no finished train_mil run. Make it with task=train_mil.")
    else:
        # Validation slides choose a classifier's weights, so that only test slides are new to it.
        rundir.refuse_leakage(trained, fold.fitted("test"))
        known |= read_methods(trained.table("methods"))
        folder = trained.path / "analysis" / "patch_scores"
        paths = {name: folder / f"{name}.h5" for name in known if name not in SINGLE}
        opened = {name: read_patch_scores(path) for name, path in paths.items() if path.is_file()}
        # A classifier of another study may have predicted none of these slides.
        classifiers = {name: one for name, one in opened.items() if not one.keys().isdisjoint(fold.split.test)}
        if opened and not classifiers:
            _LOGGER.warning("Attention is not scored: %s predicted none of these slides.", trained.path)
    attention, instances = {}, {}
    for name, classifier in classifiers.items():
        of_item = next(iter(classifier.values()))
        if of_item.attention is not None:
            attention[name] = known[name]
        if of_item.instance_logits is not None:
            label = f"{known[name].label}: patches alone"
            instances[f"{name}{_INSTANCES}"] = replace(known[name], name=f"{name}{_INSTANCES}", label=label, dash=":")
    positive = cfg.dataset.positive_class
    neurons = _read_ranking(ranking.table("neurons"), positive)
    has_channels = ranking.table("channels").is_file()
    channel = best_neuron_ids(_read_ranking(ranking.table("channels"), positive), 1)[0] if has_channels else None
    first = (NEURON, CHANNEL) if has_channels else (NEURON,)
    methods = {name: known[name] for name in first} | attention | instances
    methods[RANDOM_NEURON] = known[RANDOM_NEURON]
    best = best_neuron_ids(neurons, min(cfg.localization.n_exemplar_neurons, len(neurons)))
    density: Any = neurons.set_index("neuron_id")["density"]
    chosen = Chosen(best, choose_random_neuron(density, best[0], cfg.seed), channel)
    store = LatentStore(encoded.latents_dir())
    kept = {name: one for name, one in classifiers.items() if {name, f"{name}{_INSTANCES}"} & methods.keys()}
    return PatchScorer(fold, store, chosen, methods, positive, kept, cfg.dataset.patch_size_level0)


def _read_ranking(path: Path, positive_class: str) -> pd.DataFrame:
    table: Any = pd.read_csv(path, dtype={"class": str})
    return table[table["class"] == positive_class] if "class" in table else table
