"""Slide classifiers by name: what each is called, what it eats and how it is drawn."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from src.analysis.figure_style import BLUE, GREEN, GREY, PURPLE, SKY, VERMILLION
from src.files import write_atomically

NEURON, CHANNEL, RANDOM_NEURON = "neuron", "channel", "random_neuron"
"""The best neuron by itself, and what it is compared with."""
_COLORS = {"activations": SKY, "latents": GREEN, "top_neurons": PURPLE, "neurons": VERMILLION}
_DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Method:
    """One way to classify a slide.

    Attributes:
        name: as in `mil.methods` and in every table.
        label: for a reader.
        pool: of `mil.pools`; the name where there is none.
        eats: what a MIL model reads: `activations`, `latents`, `top_neurons` or `neurons`; else the name.
        color: of its curves and bars, which stands for what it eats.
        dash: of its curves, which stands for how it pools.
    """

    name: str
    label: str
    pool: str
    eats: str
    color: str
    dash: str

    @property
    def line(self) -> dict[str, str]:
        """What matplotlib draws its curves with."""
        return {"color": self.color, "linestyle": self.dash}


SINGLE = {
    name: Method(name, label, name, name, color, _DASHES[0])
    for name, label, color in (
        (NEURON, "Best neuron", VERMILLION),
        (CHANNEL, "Best raw channel", BLUE),
        (RANDOM_NEURON, "Random neuron", GREY),
    )
}
"""The methods that look at one neuron or channel, by name."""


def parse_methods(names: Iterable[str], pools: Iterable[str]) -> dict[str, Method]:
    """Returns the methods of `mil.methods` by name.

    Args:
        names: `neuron`, or `<pool>_<input>`.
        pools: the names of `mil.pools`.

    Raises:
        ValueError: when a name is neither.
    """
    pools = list(pools)
    known = {NEURON: SINGLE[NEURON]}
    dashes = {pool: _DASHES[i % len(_DASHES)] for i, pool in enumerate(sorted(pools))}
    for pool in pools:
        for eats in _COLORS:
            label = f"{pool.replace('_', ' ').capitalize()} MIL on {eats.replace('_', ' ')}"
            known[f"{pool}_{eats}"] = Method(f"{pool}_{eats}", label, pool, eats, _COLORS[eats], dashes[pool])
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"Expected each of mil.methods to be {NEURON} or <pool>_<input> with a pool among {pools} and an input "
            f"among {list(_COLORS)}, got {unknown[0]!r}."
        )
    return {name: known[name] for name in names}


def write_methods(methods: Mapping[str, Method], path: Path) -> None:
    """Writes the methods as csv, in their order."""
    with write_atomically(path) as temporary:
        pd.DataFrame([asdict(method) for method in methods.values()]).to_csv(temporary, index=False)


def read_methods(path: Path) -> dict[str, Method]:
    """Returns the methods that `write_methods` wrote, by name."""
    rows = pd.read_csv(path, dtype=str).to_dict("records")
    return {row["name"]: Method(**row) for row in rows}  # pyright: ignore[reportCallIssue]
