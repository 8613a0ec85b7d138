import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from src.lockstep import Lockstep, current_job


def _reader(lockstep, name, positions, log):
    def job():
        for position in positions:
            lockstep.take_turn(position)
            log.append((name, position))
        return name

    return job


def test_jobs_at_the_same_position_take_it_one_after_the_other():
    lockstep, log = Lockstep(), []
    positions = [(0, 0), (0, 8), (1, 0)]
    assert lockstep.run([_reader(lockstep, name, positions, log) for name in "abc"]) == ["a", "b", "c"]
    assert log == [(name, position) for position in positions for name in "abc"]


def test_the_job_behind_catches_up_first():
    lockstep, log = Lockstep(), []
    ahead = _reader(lockstep, "ahead", [(1, 0), (1, 8)], log)
    behind = _reader(lockstep, "behind", [(0, 0), (0, 8), (1, 0), (1, 8)], log)
    lockstep.run([ahead, behind])
    assert [name for name, _ in log] == ["behind", "behind", "ahead", "behind", "ahead", "behind"]


def test_each_job_draws_the_random_numbers_it_would_draw_alone():
    def draw(lockstep, seed):
        def job():
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            drawn = []
            for position in range(3):
                lockstep.take_turn((0, position))
                drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
            return drawn

        return job

    together = Lockstep()
    before = torch.get_rng_state()
    outcomes = together.run([draw(together, seed) for seed in (1, 1, 2)])
    assert torch.equal(torch.get_rng_state(), before)
    for seed, outcome in zip((1, 1, 2), outcomes, strict=True):
        alone = Lockstep()
        assert alone.run([draw(alone, seed)]) == [outcome]
    assert outcomes[0] != outcomes[2]


def test_a_failed_job_does_not_stop_the_others():
    lockstep, log = Lockstep(), []

    def fail():
        lockstep.take_turn((0, 0))
        raise ValueError("mine alone")

    error, name = lockstep.run([fail, _reader(lockstep, "other", [(0, 0), (0, 8)], log)])
    assert isinstance(error, ValueError)
    assert name == "other"
    assert len(log) == 2


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_of_a_job_reaches_all(kind):
    lockstep, log, ended = Lockstep(), [], []

    def waiting():
        try:
            lockstep.take_turn((0, 0))
            lockstep.take_turn((1, 0))
            log.append("went on")
        finally:
            ended.append("waiting")

    def interrupted():
        lockstep.take_turn((0, 0))
        raise kind("stop")

    def starting():
        log.append("began")

    with pytest.raises(kind, match="stop"):
        lockstep.run([waiting, interrupted])
    assert ended == ["waiting"]

    def interrupt_at_once():
        raise kind("at once")

    with pytest.raises(kind, match="at once"):
        lockstep.run([interrupt_at_once, starting])
    assert log == []


def test_each_job_has_its_own_signal_handlers():
    lockstep, before = Lockstep(), signal.getsignal(signal.SIGTERM)

    def trainer():
        mine, found = (lambda *_: None), []
        found.append(signal.getsignal(signal.SIGTERM) == before)
        original = signal.signal(signal.SIGTERM, mine)
        for step in range(3):
            lockstep.take_turn((0, step))
            found.append(signal.getsignal(signal.SIGTERM) is mine)
        signal.signal(signal.SIGTERM, original)
        return found

    assert lockstep.run([trainer, trainer]) == [[True] * 4] * 2
    assert signal.getsignal(signal.SIGTERM) == before


def test_jobs_share_a_thread_and_are_told_apart():
    lockstep = Lockstep()

    def job():
        mine = current_job()
        lockstep.take_turn((0, 0))
        assert current_job() is mine
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(current_job).result() is None
        return threading.get_ident(), mine

    (first_thread, first), (second_thread, second) = lockstep.run([job, job])
    assert first_thread == second_thread == threading.get_ident()
    assert first is not second
    assert current_job() is None


def test_outside_a_job_a_turn_is_free():
    Lockstep().take_turn((0, 0))
