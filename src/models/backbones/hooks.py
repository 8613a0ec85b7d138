"""Looks into a model while it runs, with forward hooks: any model, without knowing how it is written."""

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

# Of the largest value: the same operations on the same numbers, but kernels differ with the layout in memory.
_TOLERANCE = 1e-4


class _ReachedError(Exception):
    """Ends a forward pass after the last module that is asked for; caught where it is raised for."""


def first_tensor(output: Any) -> Tensor:
    """Returns a module's output, of which some models give more than the tensor that goes on."""
    return output[0] if isinstance(output, tuple | list) else output


class _Taken(threading.local):
    """What the pass that runs in this thread is to take, and has taken."""

    wanted: frozenset[str] = frozenset()
    last: str | None = None
    outputs: dict[str, Tensor]


_TAKEN = _Taken()


def watch(modules: Mapping[str, nn.Module]) -> None:
    """Prepares modules for `outputs_of`, once and for all: several threads may run the model at once.

    Args:
        modules: by name.
    """
    for name, module in modules.items():
        module.register_forward_hook(partial(_take, name))


def outputs_of(names: Sequence[str], run: Callable[[], Any], stop: bool) -> dict[str, Tensor]:
    """Returns the outputs of watched modules during a forward pass.

    Args:
        names: in the order in which the modules run.
        run: the forward pass.
        stop: whether to end it after the last of the modules.
    """
    _TAKEN.wanted, _TAKEN.last, _TAKEN.outputs = frozenset(names), names[-1] if stop else None, {}
    try:
        run()
    except _ReachedError:
        pass  # the pass ended where it was to
    finally:
        outputs, _TAKEN.wanted, _TAKEN.outputs = _TAKEN.outputs, frozenset(), {}
    return outputs


def _take(name: str, _module: nn.Module, _args: Any, output: Any) -> None:
    if name not in _TAKEN.wanted:
        return
    if name == _TAKEN.last:
        _TAKEN.outputs[name] = first_tensor(output)
        raise _ReachedError
    _TAKEN.outputs[name] = first_tensor(output).clone()  # what comes next may write into it (`x += shortcut`)


class Call(NamedTuple):
    """A module's call, and what it was given beside the tensor that goes through the model (positions, masks)."""

    module: nn.Module
    stream: str | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the module's output for another tensor."""
        if self.stream is None:
            return first_tensor(self.module(x, *self.args, **self.kwargs))
        return first_tensor(self.module(**{self.stream: x}, **self.kwargs))


def calls_after(layer: nn.Module, model: nn.Module, run: Callable[[], Any]) -> list[Call]:
    """Returns the outermost module calls that begin after a layer has ended, in order.

    No other thread may run the model meanwhile.

    Args:
        layer: a module of the model.
        model: all of it.
        run: a forward pass.
    """
    calls: list[Call] = []
    open_modules: list[nn.Module] = []
    ended = False

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if ended:
            if not open_modules:
                stream = None if args else next(iter(kwargs), None)
                others = {name: value for name, value in kwargs.items() if name != stream}
                calls.append(Call(module, stream, args[1:], others))
            open_modules.append(module)

    def leave(module: nn.Module, _args: Any, _output: Any) -> None:
        nonlocal ended
        if open_modules:
            open_modules.pop()
        ended = ended or module is layer

    handles = []
    for module in model.modules():
        handles += [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave),
        ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return calls


def n_calls_to(calls: Sequence[Call], x: Tensor, output: Tensor) -> int | None:
    """Returns how many calls, one after another, turn an activation into the output; None when they do not.

    Args:
        calls: of `calls_after`.
        x: the layer's output of the same forward pass.
        output: where they are to lead.
    """
    for number in range(len(calls) + 1):
        if x.shape == output.shape and (x - output).abs().max() <= _TOLERANCE * output.abs().max():
            return number
        try:
            x = calls[number](x) if number < len(calls) else x
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None  # something between the modules changes the shape: the caller tells the user
    return None
