"""Figures of how an SAE's neurons fire and how alike its atoms are: data in, Figure out."""

import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from src.analysis.figure_style import BLACK, BLUE, GREY, ORANGE, SKY, VERMILLION, styled
from src.metrics.redundancy import random_nearest_cosine
from src.wording import SLIDES, Words

_BINS_PER_DECADE = 6
_MOST_L0_BARS = 60


@styled
def plot_firing_rates(
    density: np.ndarray, n_tokens: int, almost_dead_below: float = 0.0, dense_above: float = 1.0, words: Words = SLIDES
) -> Figure:
    """Draws a histogram of log10 firing rates, with dead, almost dead and dense neurons apart.

    Args:
        density: share of patches on which each neuron fires, [n_latents].
        n_tokens: the number of those patches; no rate is between 0 and one of them.
        almost_dead_below: rates below are almost dead.
        dense_above: rates above are dense.
        words: what rows are called.
    """
    active = density[density > 0]
    lowest = min(int(np.floor(np.log10(1 / n_tokens))), -1)
    edges = np.logspace(lowest, 0, -lowest * _BINS_PER_DECADE + 1)
    is_rare, is_dense = active < almost_dead_below, active > dense_above
    groups = [
        ("almost dead, not dead", ORANGE, active[is_rare]),
        ("dense", VERMILLION, active[is_dense]),
        ("others", BLUE, active[~is_rare & ~is_dense]),
    ]
    figure, axes = _panel()
    # Dead neurons have no place on the axis: they stand apart, left of all others.
    dead_at, n_dead = edges[0] / 4, len(density) - len(active)
    axes.bar(dead_at, n_dead, 0.5 * dead_at, color=GREY, label=_share("dead", n_dead, len(density)))
    heights = np.zeros(len(edges) - 1)
    for name, color, rates in groups:
        if not len(rates):
            continue
        counts, _ = np.histogram(rates.clip(edges[0], 1), edges)  # clipped: rounding may leave 1 / n_tokens outside
        name = _share(name, len(rates), len(density))
        axes.bar(edges[:-1], counts, np.diff(edges), heights, align="edge", color=color, label=name)
        heights += counts
    for limit in (almost_dead_below, dense_above):
        if edges[0] <= limit < 1:
            axes.axvline(limit, color=BLACK, linewidth=1.2, linestyle=":")
    axes.set_xscale("log")
    ticks = {10.0**exponent: f"$10^{{{exponent}}}$" for exponent in range(lowest, 1)}
    axes.set_xticks([dead_at, *ticks], ["0", *ticks.values()])
    axes.minorticks_off()
    axes.set(xlim=(dead_at / 1.6, 1.1), ylim=(0, 1.06 * max(n_dead, heights.max())))
    title = f"{len(density):,} neurons on {n_tokens:,} {words.rows}"
    _finish(figure, axes, title, f"Share of {words.rows} on which a neuron fires", "Neurons")
    return figure


@styled
def plot_l0(n_rows: np.ndarray, words: Words = SLIDES) -> Figure:
    """Draws how many latents patches have above zero.

    Args:
        n_rows: the number of patches with 0, 1, 2, ... such latents.
        words: what rows are called.
    """
    l0 = np.arange(len(n_rows))
    share = np.cumsum(n_rows) / n_rows.sum()
    low, median, high = (int(np.searchsorted(share, level)) for level in (0.05, 0.5, 0.95))
    mean = float((l0 * n_rows).sum() / n_rows.sum())
    first, last = np.flatnonzero(n_rows)[[0, -1]]
    width = max(1, -(-(last - first + 1) // _MOST_L0_BARS))
    edges = np.arange(first, last + width + 1, width) - 0.5
    figure, axes = _panel()
    middle = f"5th to 95th percentile {low}–{high}"
    axes.axvspan(low - 0.5, high + 0.5, color=SKY, alpha=0.25, linewidth=0, label=middle)
    axes.hist(l0, edges, weights=n_rows / n_rows.sum(), color=BLUE, rwidth=0.9)
    axes.axvline(mean, color=VERMILLION, linestyle="--", label=f"mean {mean:.1f}, median {median}")
    axes.set_xlim(-0.5, 1.03 * last + 1)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    _finish(
        figure,
        axes,
        f"{int(n_rows.sum()):,} {words.rows}",
        f"Active latents of a {words.row} (L0)",
        f"Share of {words.rows}",
    )
    return figure


@styled
def plot_pre_latents(edges: np.ndarray, counts: np.ndarray, active: np.ndarray, threshold: np.ndarray | None) -> Figure:
    """Draws the distribution of pre-latents, those that become latents apart, and the threshold where there is one.

    Args:
        edges: ends of the bins, [n_bins + 1].
        counts: pre-latents in each bin, [n_bins].
        active: those of them whose latents are above zero, [n_bins].
        threshold: what pre-latents must exceed, [1] or [n_latents]; None when no threshold decides.
    """
    total = counts.sum()
    figure, axes = _panel()
    axes.stairs(counts / total, edges, fill=True, color=GREY, alpha=0.55, label="all pre-latents")
    axes.stairs(active / total, edges, fill=True, color=BLUE, label=f"kept as latents ({active.sum() / total:.2%})")
    if threshold is not None:
        low, median, high = np.quantile(threshold, [0.05, 0.5, 0.95])
        if high > low:
            middle = "thresholds, 5th to 95th percentile"
            axes.axvspan(low, high, color=VERMILLION, alpha=0.2, linewidth=0, label=middle)
        name = "median threshold" if high > low else "threshold"
        axes.axvline(median, color=VERMILLION, linestyle="--", label=f"{name} {median:.3g}")
    axes.set(yscale="log", ylim=(0.5 / total, None), xlim=(edges[0], edges[-1]))
    _finish(figure, axes, f"{total:,} pre-latents", "Pre-latent", "Share of pre-latents")
    return figure


@styled
def plot_redundancy(cosines: np.ndarray, redundant_above: float, d_in: int) -> Figure:
    """Draws how alike each atom is to its nearest other one.

    Args:
        cosines: signed cosine of each atom with its nearest other one, [n_latents].
        redundant_above: atoms with a larger absolute cosine are redundant.
        d_in: dimension of the activations, which fixes what random directions would give.
    """
    magnitudes = np.abs(cosines)
    random = random_nearest_cosine(len(cosines), d_in)
    redundant = f"redundant above {redundant_above:g}: {(magnitudes > redundant_above).mean():.1%}"
    figure, axes = _panel()
    parts = [magnitudes[cosines >= 0], magnitudes[cosines < 0]]
    bins = np.linspace(0, 1, 51).tolist()
    axes.hist(parts, bins, stacked=True, color=[BLUE, SKY], label=["same direction", "opposite direction"])
    axes.axvline(random, color=BLACK, linestyle=":", label=f"random directions, median {random:.2f}")
    axes.axvline(redundant_above, color=VERMILLION, linestyle="--", label=redundant)
    axes.set_xlim(0, 1)
    _finish(figure, axes, f"{len(cosines):,} atoms", "|cosine| of an atom with its nearest other one", "Atoms")
    return figure


@styled
def plot_frontier(l0: Sequence[float], explained_variance: Sequence[float], names: Sequence[str]) -> Figure:
    """Draws what several SAEs reach, one point each, named in the legend.

    Args:
        l0: active latents a row.
        explained_variance: of the same SAEs.
        names: of the same SAEs.
    """
    figure, axes = _panel()
    styles = itertools.cycle(itertools.product("os^Dv", (BLUE, VERMILLION, SKY, ORANGE, BLACK, GREY)))
    for x, y, name, (marker, color) in zip(l0, explained_variance, names, styles, strict=False):
        axes.scatter(x, y, marker=marker, color=color, zorder=3, label=name)
    axes.margins(x=0.1, y=0.1)
    axes.set(xlabel="L0", ylabel="Explained variance")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    return figure


def _panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.8, 3.7))
    return figure, figure.add_subplot()


def _finish(figure: Figure, axes: Axes, title: str, x: str, y: str) -> None:
    axes.set(title=title, xlabel=x, ylabel=y)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)


def _share(name: str, n: int, total: int) -> str:
    return f"{name}: {n:,} ({n / total:.1%})"
