"""What configuration values may be: of the kind that conf/ gives them, and within the limits of `src.checks.limits`."""

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from src.checks.limit import LIST, MAPPING, NONE, NUMBER, SWITCH, TEXT, USUAL_LIMITS, WHOLE, Limit
from src.checks.limits import LIMITS
from src.checks.search import search_errors
from src.files import read_yaml
from src.records import PARTS

_PATTERNS = [key for key in LIMITS if "*" in key]
_MISSING = "???"

Kinds = Mapping[tuple[str, str], frozenset[str]]
"""For the group and the name of a key, the kinds of all values that conf/ gives it."""


def kind_of(value: Any) -> str:
    """Returns the kind of a plain value in words."""
    if value is None:
        return NONE
    by_type = {bool: SWITCH, int: WHOLE, float: NUMBER, str: TEXT, list: LIST, dict: MAPPING}
    return next((kind for type_, kind in by_type.items() if isinstance(value, type_)), type(value).__name__)


def flat_values(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the values of a plain configuration by dotted key, groups and lists before what they hold.

    The elements of the list `key` have the key `key[]`.
    """
    if key:
        yield key, node
    children = node.items() if isinstance(node, Mapping) else ()
    for name, child in children:
        yield from flat_values(child, f"{key}.{name}" if key else str(name))
    for element in node if isinstance(node, list) else ():
        yield from flat_values(element, f"{key}[]")


def default_kinds(nodes: Iterable[tuple[str, Any]]) -> dict[tuple[str, str], frozenset[str]]:
    """Returns the kinds of the values in configuration files.

    A key's kinds are those of all values that any file of its group gives a key of that name: presets differ, and what
    is null in one of them may be null.

    Args:
        nodes: group ("" for what belongs to none) and content of each file.
    """
    kinds: dict[tuple[str, str], set[str]] = {}
    for group, node in nodes:
        for key, value in flat_values(node):
            kinds.setdefault((group, _name(key)), set()).add(kind_of(value))
    return {key: frozenset(found) for key, found in kinds.items()}


@functools.cache
def kinds_of_files(conf_dir: Path, groups: tuple[str, ...]) -> Kinds:
    """Returns the kinds of the values that the files of all groups and config.yaml give their keys."""
    files = [("", conf_dir / "config.yaml")]
    files += [(group, path) for group in groups for path in sorted((conf_dir / group).rglob("*.yaml"))]
    nodes = [(group, read_yaml(path)) for group, path in files]
    for _, node in nodes:
        for own in ("defaults", "hydra"):
            node.pop(own, None)
    return default_kinds(nodes)


def group_errors(config: Mapping[str, Any], groups: Iterable[str]) -> Iterator[str]:
    """Yields an error for each group that was taken away or replaced by a value."""
    for group in groups:
        if not isinstance(config.get(group), Mapping):
            yield f"{group}: expected a group of values, got {config.get(group)!r}; give {group}=<choice>"


def value_errors(config: Mapping[str, Any], kinds: Kinds) -> list[str]:
    """Returns a sentence for every value of a plain, resolved configuration that nothing can be done with.

    Args:
        config: the configuration.
        kinds: of the values under conf/; keys that are not there are held against their limits alone.
    """
    errors = [error for key, value in flat_values(config) for error in _errors_of(key, value, kinds)]
    return errors or list(_relation_errors(config))


def limit_of(key: str) -> Limit | None:
    """Returns the limit that the table states for a key."""
    if (limit := LIMITS.get(key)) is not None:
        return limit
    return next((LIMITS[pattern] for pattern in _PATTERNS if fnmatchcase(key, pattern)), None)


def _errors_of(key: str, value: Any, kinds: Kinds) -> Iterator[str]:
    limit, group = limit_of(key), key.partition(".")[0] if "." in key else ""
    known = kinds.get((group, _name(key)), frozenset())
    if limit is not None and limit.kinds:
        allowed = limit.kinds | (known & {NONE})
    elif known - {NONE}:
        allowed = known
    else:
        return  # a key of a user's own, or one that conf/ only names
    kind = kind_of(value)
    if value == _MISSING or (kind == NONE and NONE in allowed):
        return
    effective = limit if limit is not None and limit.words else USUAL_LIMITS.get(kind)
    fits = kind in allowed or (kind == WHOLE and NUMBER in allowed)
    if kind == NUMBER and not math.isfinite(value):
        fits = False
    if not fits or (effective is not None and not effective.accepts(value)):
        shown, spelled = _shown(key), _spelled(value)
        hint = "" if fits or (limit is not None and limit.says_all) else _hint(shown, value, allowed)
        yield f"{shown}: expected {_expectation(allowed, limit, fits)}, got {spelled}{hint}"


def _hint(key: str, value: Any, allowed: frozenset[str]) -> str:
    """Returns how a value of a wrong kind is typed, where that may be what is wrong with it."""
    kind = kind_of(value)
    if TEXT in allowed and kind in (WHOLE, NUMBER):
        return f"; as text it is typed {key}=\"'{value}'\""
    if LIST in allowed and kind in (TEXT, WHOLE, NUMBER):
        return f"; as a list it is typed {key}=[{value}]"
    return ""


def _expectation(allowed: frozenset[str], limit: Limit | None, is_of_right_kind: bool) -> str:
    if limit is not None and limit.says_all:
        texts = [limit.words]
    else:
        kinds = sorted(allowed - {NONE} - ({WHOLE} if NUMBER in allowed else set()))
        stated = limit.words if limit is not None else ""
        usual = {kind: USUAL_LIMITS[kind].words for kind in kinds if is_of_right_kind and kind in USUAL_LIMITS}
        texts = [f"{kind} {stated or usual.get(kind, '')}".strip() for kind in kinds]
    return " or ".join([*texts, *(["null"] if NONE in allowed else [])])


def _relation_errors(config: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is wrong between values that are right by themselves."""
    sae, mil, evaluation = (config.get(group, {}) for group in ("sae", "mil", "evaluation"))
    if sae.get("n_latents") is not None and sae.get("k", 0) > sae["n_latents"]:
        yield f"sae.k: expected at most sae.n_latents={sae['n_latents']}, got {sae['k']}"
    known = _mil_methods(list(mil.get("pools", {})))
    for method in mil.get("methods", []):
        if method not in known:
            yield f"mil.methods: expected a choice of {', '.join(known)}, got {method!r}"
        elif method.endswith("_neurons") and not method.endswith("_top_neurons") and not mil["neurons"]:
            yield f"mil.neurons: expected the neurons of {method}, got {mil['neurons']}; give mil.neurons=[<id>,...]"
    if evaluation and evaluation["almost_dead_below"] >= evaluation["dense_above"]:
        yield (
            f"evaluation.almost_dead_below: expected less than evaluation.dense_above={evaluation['dense_above']}, got "
            f"{evaluation['almost_dead_below']}"
        )
    for key in ("selection.split", "evaluation.split", "latent_summary.split"):
        group, name = key.split(".")
        parts = config.get(group, {}).get(name, "").split("+")
        if config.get(group) and (set(parts) - set(PARTS) or len(set(parts)) < len(parts)):
            yield f"{key}: expected some of {'+'.join(PARTS)}, got {'+'.join(parts)!r}"
    yield from search_errors(config.get("search", {}))


def _mil_methods(pools: Sequence[str]) -> list[str]:
    return [
        *(f"{pool}_{name}" for pool in pools for name in ("activations", "latents", "top_neurons", "neurons")),
        "neuron",
    ]


def _name(key: str) -> str:
    return key.rpartition(".")[2]


def _shown(key: str) -> str:
    """The key as a user types it: an element's is that of its list."""
    return key.removesuffix("[]")


def _spelled(value: Any) -> str:
    """Spells a value as it is typed."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else repr(value)
