"""What a search may look through and what it may aim at."""

from collections.abc import Iterator, Mapping
from typing import Any

_NUMBERS, _CHOICES = {"low", "high", "log", "step"}, {"choices"}


def search_errors(search: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is wrong between the values of the group `search`, each right by itself."""
    for key, node in search.get("space", {}).items():
        yield from (f"search.space.{key}: expected {error}" for error in _axis_errors(node))
    objectives = [*search.get("maximize", []), *search.get("minimize", [])]
    for objective in dict.fromkeys(objectives):
        if objectives.count(objective) > 1:
            yield f"search.maximize, search.minimize: expected each result once, got {objective} several times"
        if objective.startswith("test/"):
            yield (
                f"search.maximize, search.minimize: expected results on validation items, got {objective}: what is "
                "chosen by test items says nothing on test items; give val/..."
            )


def _axis_errors(node: Any) -> Iterator[str]:
    keys = set(node) if isinstance(node, Mapping) else set()
    if keys == _CHOICES:
        if not node["choices"]:
            yield "choices, got none"
        return
    if not {"low", "high"} <= keys <= _NUMBERS:
        yield f"low and high (with log or step), or choices alone, got {', '.join(sorted(keys)) or node}"
        return
    low, high, step = node["low"], node["high"], node.get("step")
    if low >= high:
        yield f"low below high, got {low} and {high}"
    if node.get("log") and (low <= 0 or step is not None):
        yield f"with log: true a low above 0 and no step, got low {low} and step {step}"
    if step is not None and step <= 0:
        yield f"a step above 0, got {step}"
