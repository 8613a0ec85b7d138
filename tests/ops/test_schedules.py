import pytest

from src.ops.schedules import learning_rate_factor


def test_warms_up_holds_and_decays():
    factors = [learning_rate_factor(step, 4, 0.5, 10) for step in range(11)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0])


def test_is_constant_by_default():
    assert [learning_rate_factor(step, 0, 0.0, None) for step in (0, 10**6)] == [1.0, 1.0]


def test_warm_up_may_start_at_zero():
    factors = [learning_rate_factor(step, 4, warmup_from_zero=True) for step in range(6)]
    assert factors == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])


@pytest.mark.parametrize(("from_zero", "expected"), [(False, [0.5, 1, 1] * 2), (True, [0, 0.5, 1] * 2)])
def test_warm_up_begins_again(from_zero, expected):
    factors = [learning_rate_factor(step, 2, warmup_from_zero=from_zero, restart_every=3) for step in range(6)]
    assert factors == pytest.approx(expected)


def test_the_decay_does_not_begin_again():
    factors = [learning_rate_factor(step, 2, 0.5, 8, restart_every=3) for step in range(9)]
    assert factors == pytest.approx([0.5, 1, 1, 0.5, 1, 0.75, 0.25, 0.25, 0])


def test_a_restart_without_warm_up_changes_nothing():
    assert [learning_rate_factor(step, 0, restart_every=2) for step in range(4)] == [1.0] * 4
