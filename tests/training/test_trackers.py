"""Loggers of several models that share a run give each the same keys."""

import pickle

import pytest

from src.training.trackers import PartLogger


class Recorder:
    save_dir = "folder"

    def __init__(self):
        self.logged = []

    def log_metrics(self, metrics, step):
        self.logged.append((metrics, step))


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("a", {"val/loss": 2.0, "epoch": 0}),
        ("", {"val/a_loss": 2.0, "val/b_loss": 3.0, "epoch": 0}),
    ],
)
def test_metrics_of_a_part_have_its_keys(part, expected):
    logger = pickle.loads(pickle.dumps(PartLogger(part, Recorder())))  # as processes that share a training get it
    logger.log_metrics({"val/a_loss": 2.0, "val/b_loss": 3.0, "epoch": 0}, 5)
    assert logger.logged == [(expected, 5)]
    assert logger.save_dir == "folder"
