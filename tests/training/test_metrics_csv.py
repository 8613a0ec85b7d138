import csv
import pickle
from contextlib import contextmanager

from src.files import write_atomically
from src.training import metrics_csv
from src.training.metrics_csv import MetricsCsv


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_one_row_a_step_and_columns_as_they_come(tmp_path):
    logger = MetricsCsv(tmp_path / "metrics.csv")
    logger.log_metrics({"train/loss": 2.0}, step=1)
    logger.log_metrics({"val/l0": 16.0}, step=1)
    logger.log_metrics({"train/loss": 1.0}, step=2)
    logger.save()
    assert read(tmp_path / "metrics.csv") == [
        {"step": "1", "train/loss": "2.0", "val/l0": "16.0"},
        {"step": "2", "train/loss": "1.0", "val/l0": ""},
    ]


def test_resumed_run_keeps_what_came_before_and_repeats_no_step(tmp_path):
    path = tmp_path / "metrics.csv"
    first = MetricsCsv(path)
    for step in (1, 2, 3):
        first.log_metrics({"train/loss": float(step)}, step)
    first.finalize("failed")
    resumed = MetricsCsv(path)
    for step in (3, 4):
        resumed.log_metrics({"train/loss": 10.0 * step}, step)
    resumed.finalize("success")
    assert [(row["step"], row["train/loss"]) for row in read(path)] == [
        ("1", "1.0"),
        ("2", "2.0"),
        ("3", "30.0"),
        ("4", "40.0"),
    ]


def test_many_rows_are_written_seldom_but_before_a_checkpoint_and_after_it(tmp_path, monkeypatch):
    clock, written = [0.0], []

    @contextmanager
    def write(path):
        with write_atomically(path) as temporary:
            yield temporary
        clock[0] += 1.0  # a second a file
        written.append(clock[0])

    monkeypatch.setattr(metrics_csv, "write_atomically", write)
    monkeypatch.setattr(metrics_csv.time, "monotonic", lambda: clock[0])
    logger = MetricsCsv(tmp_path / "metrics.csv")

    def log(step):
        logger.log_metrics({"train/loss": float(step)}, step)
        logger.save()
        clock[0] += 0.1

    for step in range(1000):
        log(step)
    assert 4 <= len(written) <= 6
    n_written = len(written)
    logger.write_before_checkpoint()
    assert len(read(tmp_path / "metrics.csv")) == 1000
    log(1000)
    assert len(read(tmp_path / "metrics.csv")) == 1001
    log(1001)
    assert len(written) == n_written + 2
    logger.finalize("success")
    assert len(read(tmp_path / "metrics.csv")) == 1002


def test_nothing_logged_writes_nothing(tmp_path):
    MetricsCsv(tmp_path / "metrics.csv").save()
    assert list(tmp_path.iterdir()) == []


def test_a_process_continues_the_file_and_the_one_that_waits_leaves_it(tmp_path):
    path = tmp_path / "metrics.csv"
    first = MetricsCsv(path)
    first.log_metrics({"train/loss": 1.0}, 1)
    first.save()
    waiting = MetricsCsv(path)
    for step in (2, 3):  # two processes, one after the other
        other = pickle.loads(pickle.dumps(waiting))
        other.log_metrics({"train/loss": float(step)}, step)
        other.finalize("success")
    waiting.finalize("failed")
    assert [row["step"] for row in read(path)] == ["1", "2", "3"]
