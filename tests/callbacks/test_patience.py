from types import SimpleNamespace

import pytest

from src.callbacks.patience import Patience


def epochs_until_stop(values, **options):
    callback = Patience("val/loss", **({"mode": "min", "patience": 2, "min_epochs": 1, "stop_below": 0.0} | options))
    for epoch, value in enumerate(values):
        trainer = SimpleNamespace(callback_metrics={"val/loss": value}, current_epoch=epoch, should_stop=False)
        callback.on_train_epoch_end(trainer, None)
        if trainer.should_stop:
            return epoch + 1
    return None


@pytest.mark.parametrize(
    ("values", "options", "n_epochs"),
    [
        ([3, 2, 2, 2], {}, 4),  # an equal value is no better one
        ([3, 4, 2, 3, 1, 3], {}, None),
        ([1, 2, 3, 0.5, 2, 3], {"min_epochs": 4}, 6),  # waited long enough before the least, but not any more
        ([1, 2, 3, 4], {"min_epochs": 4}, 4),
        ([0.5, 0.7, 0.7], {"mode": "max"}, None),
        ([0.5, 0.4, 0.5], {"mode": "max"}, 3),
        ([0.5, 0.009], {"stop_below": 0.01}, 2),
        ([0.005, 0.004, 0.003], {"stop_below": 0.01, "min_epochs": 3}, 3),
    ],
)
def test_when_training_stops(values, options, n_epochs):
    assert epochs_until_stop(values, **options) == n_epochs


def test_waiting_goes_on_after_a_resume():
    first = Patience("val/loss", "min", 3, 1, 0.0)
    for epoch, value in enumerate([1.0, 2.0, 2.0]):
        trainer = SimpleNamespace(callback_metrics={"val/loss": value}, current_epoch=epoch, should_stop=False)
        first.on_train_epoch_end(trainer, None)
    second = Patience("val/loss", "min", 3, 1, 0.0)
    second.load_state_dict(first.state_dict())
    trainer = SimpleNamespace(callback_metrics={"val/loss": 1.0}, current_epoch=3, should_stop=False)
    second.on_train_epoch_end(trainer, None)
    assert trainer.should_stop
