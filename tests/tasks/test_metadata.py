import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from PIL import Image

from src import config
from src.data.images.boxes import read_boxes
from src.records import read_items
from src.runs.execution import execute
from src.split_files import read_split
from src.tasks import metadata

PARTS = ("train", "val", "test", "all")


class Records:
    """What a task needs of its run directory."""

    def record(self, *inputs):
        self.inputs = inputs


def configure(tmp_path, listing, **dataset):
    values = {
        "listing": listing,
        "class_names": None,
        "on_bad_file": "error",
        "metadata_csv": str(tmp_path / "data" / "dataset.csv"),
        "splits_dir": str(tmp_path / "data" / "splits"),
    }
    return OmegaConf.create({"dataset": values | dataset, "fold": 0, "overwrite": False})


@pytest.fixture
def tensors(tmp_path):
    """Four images: two to train on, two to test on; the second and the third may be of one patient."""
    none = dict.fromkeys(PARTS)
    files = {}
    for part in ("train", "test"):
        files[part] = str(tmp_path / f"{part}.npy")
        np.save(files[part], np.zeros((2, 3), np.float32))
    listing = {
        "_target_": "src.data.readers.tensor_folder.list_tensors",
        "tensors": none | files,
        "ids": none,
        "labels": none,
        "cases": none,
    }
    return configure(tmp_path, listing)


def give_cases(cfg, tmp_path, **cases):
    for part, names in cases.items():
        path = tmp_path / f"{part}.txt"
        path.write_text("\n".join(names))
        cfg.dataset.listing["cases"][part] = str(path)


@pytest.fixture
def folder(tmp_path):
    """Two classes in two parts."""
    for name in ("train/cat/1", "train/dog/2", "test/cat/3", "test/dog/4"):
        path = tmp_path / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    return tmp_path / "images"


@pytest.fixture
def images(tmp_path, folder):
    listing = {"_target_": "src.data.images.image_folder.list_image_folder", "folder": str(folder)}
    return configure(tmp_path, listing, class_names=["cat", "dog"], target="label")


def test_cases_of_tensors_are_written(tensors, tmp_path, caplog):
    give_cases(tensors, tmp_path, train=["p1", "p1"], test=["p2", "p3"])
    rundir = Records()
    assert metadata.run(tensors, rundir) == {"n_items": 4.0, "n_train": 2.0, "n_test": 2.0}
    assert pd.read_csv(tensors.dataset.metadata_csv)["case_id"].tolist() == ["p1", "p1", "p2", "p3"]
    assert {one.what for one in rundir.inputs} == {"listing"}
    assert "tensor_cases" not in caplog.text


def test_a_patient_with_images_to_train_and_to_test_on_is_refused_before_anything_is_written(tensors, tmp_path):
    give_cases(tensors, tmp_path, train=["p1", "p2"], test=["p2", "p3"])
    with pytest.raises(ValueError, match="got case 'p2' in train and test"):
        metadata.run(tensors, Records())
    assert not (tmp_path / "data").exists()


def test_without_cases_it_is_said_that_each_image_is_one(tensors, caplog):
    caplog.set_level(logging.WARNING)
    metadata.run(tensors, Records())
    assert caplog.text.count("each counts as a case of its own") == 1
    assert pd.read_csv(tensors.dataset.metadata_csv)["case_id"].is_unique


def test_an_image_folder_becomes_a_csv_and_a_split(images):
    assert metadata.run(images, Records()) == {"n_items": 4.0, "n_train": 2.0, "n_test": 2.0}
    text = Path(images.dataset.metadata_csv).read_text()
    assert text.splitlines()[:2] == ["case_id,image_id,label,path", "test__cat__3,test__cat__3,cat,test/cat/3.png"]
    assert [item.label for item in read_items(images.dataset.metadata_csv, ["cat", "dog"])] == ["cat", "dog"] * 2
    assert read_split(images.dataset.splits_dir, 0).test == ("test__cat__3", "test__dog__4")
    assert metadata.missing_inputs(images) == []


def test_a_label_outside_of_the_class_list_is_refused_before_anything_is_written(images, tmp_path):
    images.dataset.class_names = ["cat"]
    with pytest.raises(ValueError, match=r"Expected labels among \['cat'\] in dataset.listing, got \['dog'\]"):
        metadata.run(images, Records())
    assert not (tmp_path / "data").exists()


def test_boxes_are_written_beside_the_csv(tmp_path, folder):
    (tmp_path / "images" / "images.csv").write_text("image_id,path\n1,train/cat/1.png\n2,train/dog/2.png\n")
    (tmp_path / "boxes.csv").write_text("image_id,xmin,ymin,xmax,ymax,label\n2,0,1,2.5,3,ear\n2,1,1,2,2,eye\n")
    listing = {
        "_target_": "src.data.images.table.list_table",
        "csv": str(folder / "images.csv"),
        "folder": str(folder),
        "columns": {"id": "image_id", "path": "path"},
        "boxes": {"csv": str(tmp_path / "boxes.csv")},
    }
    cfg = configure(tmp_path, listing)
    assert metadata.run(cfg, Records()) == {"n_items": 2.0}
    assert read_boxes(cfg.dataset) == {"2": [(0, 1, 2.5, 3, "ear"), (1, 1, 2, 2, "eye")]}
    assert not Path(cfg.dataset.splits_dir).exists()


def test_files_of_its_own_are_written_again(images, folder):
    metadata.run(images, Records())
    (folder / "train" / "dog" / "5.png").write_bytes((folder / "train" / "dog" / "2.png").read_bytes())
    assert metadata.missing_inputs(images) == []
    assert metadata.run(images, Records())["n_items"] == 5
    assert len(read_split(images.dataset.splits_dir, 0).train) == 3


@pytest.mark.parametrize("name", ["dataset.csv", "splits/splits_0.csv"])
def test_what_somebody_else_wrote_or_changed_is_not_overwritten(images, name, tmp_path):
    metadata.run(images, Records())
    path = tmp_path / "data" / name
    changed = path.read_text().replace("train__cat__1", "train__dog__2", 1)
    if name == "dataset.csv":
        changed = path.read_text().replace(",dog,", ",cat,", 1)
    else:
        changed = "train,val,test\ntrain__dog__2,train__cat__1,test__cat__3\n"
    path.write_text(changed)
    with pytest.raises(ValueError, match=f"{path.name}.*overwrite=true"):
        metadata.run(images, Records())
    assert path.read_text() == changed
    images.overwrite = True
    metadata.run(images, Records())
    assert path.read_text() != changed


def test_a_pipeline_keeps_a_csv_that_somebody_else_wrote(images):
    path = Path(images.dataset.metadata_csv)
    path.parent.mkdir()
    path.write_text("case_id,image_id,label\na,a,cat\n")
    assert "task=metadata did not write" in metadata.missing_inputs(images)[0]


def test_what_a_killed_run_left_is_its_own(images, monkeypatch, tmp_path):
    monkeypatch.setattr(metadata, "write_folds", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        metadata.run(images, Records())
    assert not Path(images.dataset.metadata_csv).exists()
    monkeypatch.undo()
    metadata.run(images, Records())
    assert Path(images.dataset.metadata_csv).is_file()
    assert set(json.loads((tmp_path / "data" / "dataset.made_by_loupe.json").read_text())) == {
        "dataset.csv",
        "splits_0.csv",
    }


def test_folds_of_another_task_are_not_mixed_with_a_split_that_is_given(images):
    splits_dir = Path(images.dataset.splits_dir)
    splits_dir.mkdir(parents=True)
    (splits_dir / "made_by_loupe.json").write_text("{}")
    with pytest.raises(ValueError, match="brings a split of its own"):
        metadata.run(images, Records())


def test_a_data_set_without_a_listing_is_told_how_to_get_one(images):
    images.dataset.listing = None
    assert metadata.missing_inputs(images) == ["the data set has no listing"]
    with pytest.raises(ValueError, match=r"Expected dataset\.listing"):
        metadata.run(images, Records())


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["camelyon16", "panda"])
def test_the_published_tables_of_sae1n_are_written_byte_for_byte(data_dir, tmp_path, name):
    published = data_dir / "tables" / "sae1n" / f"{name}_metadata.csv"
    table = pd.read_csv(published, dtype=str)
    features = tmp_path / "features" / "h5_files"
    (tmp_path / "annotations").mkdir()
    features.mkdir(parents=True)
    for slide_id in table.slide_id:
        (features / f"{slide_id}.h5").touch()
    if name == "camelyon16":
        for slide_id in table.slide_id[(table.split == "test") & (table.label == "tumor")]:
            (tmp_path / "annotations" / f"{slide_id}.xml").touch()
    else:
        grades = pd.DataFrame({"image_id": table.slide_id, "data_provider": table.data_provider})
        grades["isup_grade"] = (table.label == "tumor").astype(int)
        grades.loc[len(grades)] = ["0" * 32, "radboud", 5]  # without an h5
        grades.to_csv(tmp_path / "train.csv", index=False)
    config.register_resolvers()
    typed = [f"dataset={name}", f"dataset.dir={tmp_path}", f"dataset.features_dir={tmp_path / 'features'}"]
    typed += [f"dataset.metadata_csv={tmp_path / 'dataset.csv'}", f"paths.runs={tmp_path / 'runs'}", "task=metadata"]
    execute(config.compose(typed), typed)
    assert (tmp_path / "dataset.csv").read_bytes() == published.read_bytes()
