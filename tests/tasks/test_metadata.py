import logging

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from src.tasks import metadata

PARTS = ("train", "val", "test", "all")


class Records:
    """What a task needs of its run directory."""

    def record(self, *inputs):
        self.inputs = inputs


@pytest.fixture
def cfg(tmp_path):
    """Four images: two to train on, two to test on; the second and the third may be of one patient."""
    none = dict.fromkeys(PARTS)
    files = {}
    for part in ("train", "test"):
        files[part] = str(tmp_path / f"{part}.npy")
        np.save(files[part], np.zeros((2, 3), np.float32))
    dataset = {
        "tensors": none | files,
        "tensor_ids": none,
        "tensor_labels": none,
        "tensor_cases": none,
        "on_bad_file": "error",
        "metadata_csv": str(tmp_path / "data" / "dataset.csv"),
        "splits_dir": str(tmp_path / "data" / "splits"),
    }
    return OmegaConf.create({"dataset": dataset, "fold": 0})


def give_cases(cfg, tmp_path, **cases):
    for part, names in cases.items():
        path = tmp_path / f"{part}.txt"
        path.write_text("\n".join(names))
        cfg.dataset.tensor_cases[part] = str(path)


def test_cases_are_written(cfg, tmp_path, caplog):
    give_cases(cfg, tmp_path, train=["p1", "p1"], test=["p2", "p3"])
    rundir = Records()
    assert metadata.run(cfg, rundir) == {"n_images": 4.0, "n_train": 2.0, "n_test": 2.0}
    assert pd.read_csv(cfg.dataset.metadata_csv)["case_id"].tolist() == ["p1", "p1", "p2", "p3"]
    assert "tensor_cases.train" in {one.name for one in rundir.inputs}
    assert "tensor_cases" not in caplog.text


def test_a_patient_with_images_to_train_and_to_test_on_is_refused_before_anything_is_written(cfg, tmp_path):
    give_cases(cfg, tmp_path, train=["p1", "p2"], test=["p2", "p3"])
    with pytest.raises(ValueError, match="got case 'p2' in train and test"):
        metadata.run(cfg, Records())
    assert not (tmp_path / "data").exists()


def test_without_cases_it_is_said_that_each_image_is_one(cfg, caplog):
    caplog.set_level(logging.WARNING)
    metadata.run(cfg, Records())
    assert caplog.text.count("each image counts as a case of its own") == 1
    assert pd.read_csv(cfg.dataset.metadata_csv)["case_id"].is_unique
