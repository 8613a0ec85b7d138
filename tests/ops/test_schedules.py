import pytest

from src.ops.schedules import learning_rate_factor


def test_warms_up_holds_and_decays():
    factors = [learning_rate_factor(step, 4, 0.5, 10) for step in range(11)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0])


def test_is_constant_by_default():
    assert [learning_rate_factor(step, 0, 0.0, None) for step in (0, 10**6)] == [1.0, 1.0]
