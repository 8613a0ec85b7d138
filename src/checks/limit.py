"""What a configuration value may be: a kind, a range, a choice."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NONE, SWITCH, WHOLE, NUMBER = "null", "true or false", "a whole number", "a number"
TEXT, LIST, MAPPING = "text", "a list", "a group of values"


@dataclass(frozen=True)
class Limit:
    """What a value may be.

    Attributes:
        words: what `accepts` asks for; empty when nothing.
        accepts: whether a value of a right kind is one that can be worked with.
        kinds: the kinds it may have (null too, where conf/ has it); empty: those that it has in conf/.
        says_all: whether `words` says it all, without the kind.
    """

    words: str = ""
    accepts: Callable[[Any], bool] = lambda _: True
    kinds: frozenset[str] = frozenset()
    says_all: bool = False


def kind(*kinds: str) -> Limit:
    """Returns the limit of a value of some kinds."""
    return Limit(kinds=frozenset(kinds))


def between(low: float, high: float = math.inf, *kinds: str, low_open: bool = False, high_open: bool = False) -> Limit:
    """Returns the limit of a number within low and high, an open end excluded."""

    def accepts(value: float) -> bool:
        return (low < value if low_open else low <= value) and (value < high if high_open else value <= high)

    words = f"above {low}" if low_open else f"of at least {low}"
    if high < math.inf:
        words += f" and below {high}" if high_open else f" and at most {high}"
    return Limit(words, accepts, frozenset(kinds))


def one_of(*choices: str) -> Limit:
    """Returns the limit of a text among choices."""
    words = " or ".join([", ".join(choices[:-1]), choices[-1]])
    return Limit(words, lambda value: value in choices, frozenset({TEXT}), says_all=True)


# Of numbers and texts that the table does not list.
USUAL_LIMITS = {
    WHOLE: between(0),
    NUMBER: between(0),
    TEXT: Limit("that is not empty", lambda value: value.strip() != ""),
}

ONE_OR_MORE = between(1)
ONE_OR_MORE_WHOLE = between(1, math.inf, WHOLE)
POSITIVE = between(0, math.inf, NUMBER, low_open=True)
SHARE = between(0, 1, NUMBER)
SHARE_BELOW_1 = between(0, 1, NUMBER, high_open=True)
INNER_SHARE = between(0, 1, NUMBER, low_open=True, high_open=True)
SEED = between(0, 2**32 - 1, WHOLE)
ANY_NUMBER = Limit("of any sign", kinds=frozenset({NUMBER}))
