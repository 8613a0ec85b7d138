import os
import signal
import sys
import time

import pytest

from src.interrupts import Interrupted, describe, interrupted_as, interruptible, keeping, status_of


@pytest.fixture(autouse=True)
def handlers_of_a_new_process():
    """Other tests may have left handlers of libraries."""
    fresh = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in fresh.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_block_with_the_code_of_shells_and_handlers_are_set_back(number, code):
    before = signal.getsignal(number)

    def wait():
        os.kill(os.getpid(), number)
        signal.pause()

    with pytest.raises(Interrupted) as told, interruptible():
        wait()
    assert (told.value.code, told.value.signal_name) == (code, number.name)
    assert status_of(told.value) == "interrupted"
    assert signal.getsignal(number) == before


def test_a_signal_that_comes_while_an_object_is_deleted_is_not_lost():
    class Killed:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)  # the handler raises here

    def delete_one():
        Killed()
        time.sleep(10)

    hook, started = sys.unraisablehook, time.monotonic()
    with pytest.raises(Interrupted), interruptible():
        delete_one()
    assert time.monotonic() - started < 10
    assert sys.unraisablehook is hook


def test_what_another_handler_made_of_a_signal_keeps_its_notes():
    stop = SystemExit()
    stop.add_note("3 of 18 slides")
    interruption = interrupted_as(stop, signal.SIGTERM)
    assert interruption.code == 143
    assert "kept: 3 of 18 slides" in describe(interruption, [])


def test_a_handler_of_others_stays():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def interrupted(*kept):
    with pytest.raises(Interrupted) as told, keeping(lambda: kept[-1]), keeping(lambda: kept[0]):
        raise Interrupted(signal.SIGTERM)
    return told.value


def test_the_line_says_what_is_kept_and_goes_on_without_starting_over():
    line = describe(interrupted("3 of 18 slides", "the finished steps tile"), ["overwrite=true", "sweep.grid=[a, b]"])
    assert line == (
        "Interrupted by SIGTERM; kept: 3 of 18 slides, the finished steps tile. "
        "Go on with: python -m src.run 'sweep.grid=[a, b]'"
    )


def test_where_nothing_is_kept_the_command_stays_as_typed():
    line = describe(interrupted("", ""), ["task=tile", "overwrite=true"])
    assert line.endswith("nothing was kept. Start again with: python -m src.run task=tile overwrite=true")


def test_errors_are_failures_and_get_no_notes():
    with pytest.raises(ValueError, match="wrong") as told, keeping(lambda: "3 slides"):
        raise ValueError("wrong")
    assert not hasattr(told.value, "__notes__")
    assert status_of(told.value) == "failed"
