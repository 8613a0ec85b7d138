"""How neurons are tested and ranked."""

from dataclasses import dataclass

ORDERS = {
    "welch": ("-p_value", "statistic"),
    "mann_whitney": ("-p_value", "statistic"),
    "auroc": ("auroc", "statistic"),
    "effect_size": ("effect_size", "statistic"),
    "logistic": ("weight", "statistic"),
    "mil_weights": ("weight", "statistic"),
}
"""What decides the order (descending unless negated), ties by the next, at last by neuron_id."""
CHOICES = {
    "method": tuple(ORDERS),
    "unit": ("case", "slide"),
    "p_value": ("guarded", "welch"),
    "alternative": ("greater", "two_sided"),
    "correction": ("bh", "max_t"),
}
"""What the choices of a rule may be."""
WEIGHTED = ("logistic", "mil_weights")
"""The methods by which neurons are weighed together."""


@dataclass(frozen=True)
class SelectionRule:
    """How neurons are tested and ranked.

    Attributes:
        method: what ranks the neurons: `welch` (p, then t), `mann_whitney` (p of ranks), `auroc`, `effect_size`,
            `logistic` (weights of a ridge logistic regression on all neurons, see `logistic_weights`) or `mil_weights`
            (weights that the caller gives, see `mil_weights`). All but `mann_whitney` are tested by t.
        unit: what counts as one observation: `case` or `slide`. Slides of one patient resemble each other, so taking
            them for independent overstates the evidence (on simulated null data of 36 slides in 24 cases: a neuron
            with q below 0.05 in 8 to 23 % of the data sets with slides, in at most 3 % with cases). Slides of one case
            and class are averaged; a case with slides of both classes counts in both groups, which errs on the
            careful side. Where each case has one slide, the two are the same.
        p_value: `welch`, or `guarded`, the larger of Welch's and the pooled-variance p. Welch's test trusts each
            group's own variance, and a sparse neuron that happens to be silent in a small group has none: on simulated
            null data with 6 negative of 24 cases a neuron has q below 0.05 in 17 % of the data sets, with 16 of 66 in
            33 %; guarded in at most 5 % whatever the balance. Groups of one size give the same p below 0.5 both ways.
        alternative: `greater`, neurons that are higher in a class, or `two_sided`.
        correction: `bh` (false discovery rate) or `max_t` (family-wise, by permutation of labels).
        n_permutations: of `max_t`.
        seed: of the permutations and of inner folds.

    Raises:
        ValueError: when a choice is unknown.
    """

    method: str = "welch"
    unit: str = "case"
    p_value: str = "guarded"
    alternative: str = "greater"
    correction: str = "bh"
    n_permutations: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"Expected selection.{name} to be one of {known}, got {getattr(self, name)!r}.")

    @property
    def is_two_sided(self) -> bool:
        """Whether neurons that are lower in a class count as well."""
        return self.alternative == "two_sided"
