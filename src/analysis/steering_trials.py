"""What steering tries: which edits are made to the items of a class, and how the number of neurons is chosen."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.analysis.steering_controls import draw_matched
from src.ops.steering import Edit, add, keep, remove, scale, set_to

NO_SAE, RECONSTRUCT, KEEP, REMOVE = "no_sae", "reconstruct", "keep", "remove"
UNION = "union"


@dataclass(frozen=True)
class Trial:
    """One edit, and what it stands for in the tables.

    Attributes:
        action: `no_sae`, `reconstruct` (no edit), `keep`, `remove`, `scale`, `set` or `add`.
        target: the class whose neurons are edited; `union` of all classes' neurons; "" where none are.
        k: neurons of a class; 0 where none are edited.
        strength: of `scale`, `set` and `add`.
        draw: number of the random set that stands for the class's neurons; -1 for the neurons themselves.
        neuron_id: where a single neuron is edited for itself; -1 else.
        edit: what is done; None without an SAE.
    """

    action: str
    target: str = ""
    k: int = 0
    strength: float | None = None
    draw: int = -1
    neuron_id: int = -1
    edit: Edit | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Neurons:
    """What edits are made of.

    Attributes:
        classes: the classes that are steered.
        rankings: [n_classes, n_latents], neuron ids, the best for each class first.
        masses: [n_classes, n_latents], mean latents on the items of each class.
        means: [n_latents] float32, mean latents over train rows, zeros included: what latents are replaced by, and the
            unit of doses that are set or added.
        replace: what is taken away becomes its `mean`, `zero`, or is taken from another item (`resample`).
    """

    classes: tuple[str, ...]
    rankings: np.ndarray
    masses: np.ndarray
    means: Tensor
    replace: str

    @property
    def n_latents(self) -> int:
        """Of the SAE."""
        return self.rankings.shape[1]

    def best(self, name: str, k: int) -> np.ndarray:
        """Returns the k best neurons of a class, or of `union` those of all classes together, without repeats."""
        if name == UNION:
            return np.unique(self.rankings[:, :k])
        return self.rankings[self.classes.index(name), :k]

    def take_away(self, action: str, neuron_ids: np.ndarray) -> Edit:
        """Returns the edit that keeps only, or removes, some neurons."""
        means = self.means if self.replace == "mean" else None
        act = keep if action == KEEP else remove
        return act(neuron_ids.tolist(), self.n_latents, means, resamples=self.replace == "resample")

    def change(self, action: str, neuron_ids: np.ndarray, strength: float) -> Edit:
        """Returns the edit that scales, sets or adds; strengths of the last two are in units of `means`."""
        ids = neuron_ids.tolist()
        if action == "scale":
            return scale(ids, self.n_latents, strength)
        return {"set": set_to, "add": add}[action](ids, self.n_latents, strength * self.means)


def parse_sizes(sizes: Sequence[int | str], n_latents: int) -> list[int]:
    """Returns numbers of neurons, ascending, without repeats and without those above n_latents; `all` is n_latents.

    Raises:
        ValueError: when one is neither a number from 0 nor `all`.
    """
    if wrong := [size for size in sizes if size != "all" and (not isinstance(size, int) or size < 0)]:
        raise ValueError(f"Expected steer.sizes to be whole numbers from 0 or all, got {wrong[0]!r}.")
    numbers = {n_latents if size == "all" else int(size) for size in sizes}
    return sorted(number for number in numbers if number <= n_latents)


def plain_trials(n_latents: int) -> list[Trial]:
    """Returns what all edits are compared with: the model without the SAE, and the latents as they are."""
    nothing = Edit(torch.zeros(n_latents, dtype=torch.bool))
    return [Trial(NO_SAE), Trial(RECONSTRUCT, edit=nothing)]


def size_trials(
    neurons: Neurons, target: str, sizes: Sequence[int], n_controls: int = 0, seed: int = 0
) -> Iterator[Trial]:
    """Yields edits that keep only, and that remove, the best neurons of a class or union, by their number.

    Args:
        neurons: see there.
        target: the class or `union`.
        sizes: numbers of neurons.
        n_controls: random sets of as many neurons with as much mass on the class, see `draw_matched`.
        seed: of these.
    """
    for k in sizes:
        chosen = neurons.best(target, k)
        sets = {-1: chosen}
        if n_controls:
            number = neurons.classes.index(target)
            rng = np.random.default_rng([seed, number, k])
            sets |= dict(enumerate(draw_matched(chosen, neurons.masses[number], n_controls, rng)))
        for draw, ids in sets.items():
            for action in (KEEP, REMOVE):
                yield Trial(action, target, k, draw=draw, edit=neurons.take_away(action, ids))


def describe_controls(neurons: Neurons, trials: Iterable[Trial]) -> list[dict[str, Any]]:
    """Returns how well random sets match: a row a set with its share of the chosen neurons and of their mass."""
    rows = []
    for trial in trials:
        if trial.draw >= 0 and trial.action == REMOVE and trial.edit is not None:
            chosen, drawn = neurons.best(trial.target, trial.k), trial.edit.changed.numpy().nonzero()[0]
            mass = neurons.masses[neurons.classes.index(trial.target)]
            known = {"class": trial.target, "k": trial.k, "draw": trial.draw}
            ratio = float(mass[drawn].sum() / mass[chosen].sum()) if mass[chosen].any() else float("nan")
            shared = float(np.isin(drawn, chosen).mean()) if trial.k else 0.0
            rows.append({**known, "mass_ratio": ratio, "shared": shared})
    return rows


def dose_trials(neurons: Neurons, target: str, k: int, doses: Mapping[str, Sequence[float]]) -> Iterator[Trial]:
    """Yields edits of a class's k best neurons by strength; `doses` are strengths by `scale`, `set` and `add`."""
    for action, strengths in doses.items():
        for strength in strengths:
            edit = neurons.change(action, neurons.best(target, k), float(strength))
            yield Trial(action, target, k, float(strength), edit=edit)


def single_trials(neurons: Neurons, target: str, n: int) -> Iterator[Trial]:
    """Yields edits that remove one of a class's n best neurons each."""
    for rank in range(min(n, neurons.n_latents)):
        one = neurons.best(target, rank + 1)[rank:]
        yield Trial(REMOVE, target, 1, neuron_id=int(one[0]), edit=neurons.take_away(REMOVE, one))


@dataclass(frozen=True)
class Plan:
    """What is tried on the items of each class.

    Attributes:
        neurons: see there.
        sizes: numbers of neurons of a class.
        k: the size at which side effects and doses are measured.
        n_controls: random sets at each of `control_sizes`.
        control_sizes: see there.
        n_single: best neurons of each class that are removed one by one.
        has_union: whether the neurons of all classes together are edited too.
        has_side_effects: whether each class's neurons are edited on the items of all classes.
        doses: strengths by `scale`, `set` and `add`.
        seed: of random sets.
    """

    neurons: Neurons
    sizes: Sequence[int]
    k: int
    n_controls: int
    control_sizes: Sequence[int]
    n_single: int
    has_union: bool
    has_side_effects: bool
    doses: Mapping[str, Sequence[float]]
    seed: int

    def of_class(self, name: str) -> list[Trial]:
        """Returns the edits of the items of a class: by its own neurons, by all together, by those of other classes."""
        neurons, found = self.neurons, plain_trials(self.neurons.n_latents)
        for k in self.sizes:
            n_controls = self.n_controls if k in self.control_sizes else 0
            found += size_trials(neurons, name, [k], n_controls, self.seed)
        found += single_trials(neurons, name, self.n_single)
        if self.has_union:
            found += size_trials(neurons, UNION, self.sizes)
        for other in neurons.classes if self.has_side_effects else [name]:
            if other != name:
                found += size_trials(neurons, other, [self.k])
            found += dose_trials(neurons, other, self.k, self.doses)
        return found
