"""The command on somebody's folder of images: classes, patients, and a csv with a split and boxes."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.command import run_command

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path):
    """Noise, two images of each of 24 patients; those of class "square" have a red square."""
    rng = np.random.default_rng(0)
    for patient in range(24):
        for number in range(2):
            pixels = rng.integers(0, 100, (48, 64, 3), np.uint8)
            label = ("plain", "square")[patient % 2]
            if label == "square":
                pixels[8:40, 8:40] = [250, 20, 20]
            path = tmp_path / "images" / label / f"P{patient:02d}_{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return tmp_path / "images"


def run(folder, *overrides):
    root = folder.parent
    typed = ["exp=images", "name=images", "dataset.name=images", f"dataset.dir={folder}"]
    typed += ["backbone=random_vit_tiny", "trainer=cpu", f"paths.data={root / 'data'}", f"paths.runs={root / 'runs'}"]
    typed += ["sae.expansion=1", "train.epochs=20", "train.batch_size=16", "mil.methods=[neuron]", *overrides]
    return run_command(*typed)


def results(folder, task):
    (path,) = folder.parent.glob(f"runs/images/**/{task}/**/results.json")
    return json.loads(path.read_text())


def test_from_a_folder_to_a_report_and_again_when_an_image_is_added(folder):
    given = ["dataset.positive_class=square", 'dataset.listing.case_pattern="(P[0-9]+)_"', "task=pipeline"]
    run(folder, *given)
    assert results(folder, "metadata")["n_items"] == 48
    assert results(folder, "splits")["n_cases"] == 24
    assert results(folder, "select_neurons")["train/auroc"] > 0.9
    first = folder / "square" / "P01_0.png"
    (folder / "square" / "P01_9.png").write_bytes(first.read_bytes())
    run(folder, *given)
    assert results(folder, "metadata")["n_items"] == 49
    assert results(folder, "embed")["n_items"] == 49


def test_a_csv_of_other_columns_brings_split_and_boxes(folder):
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    table = pd.DataFrame({"file": paths, "finding": [path.split("/")[0] for path in paths]})
    table["part"] = ["train", "train", "train", "val", "test", "test"] * 8
    table.to_csv(folder / "images.csv", index=False)
    pd.DataFrame({"id": ["square__P01_0"], "xmin": [8], "ymin": [8], "xmax": [40], "ymax": [40]}).to_csv(
        folder / "boxes.csv", index=False
    )
    columns = "dataset.listing.columns={id:null,path:file,split:part}"
    boxes = f"dataset.listing.boxes={{csv:{folder / 'boxes.csv'},id:id,label:null}}"
    run(folder, "dataset=image_table", columns, boxes, "dataset.listing.labels.label=finding", "task=metadata")
    data = folder.parent / "data" / "images"
    assert results(folder, "metadata") == {"n_items": 48, "n_train": 24, "n_val": 8, "n_test": 16}
    assert pd.read_csv(data / "boxes.csv").to_numpy().tolist()[0][:5] == ["square__P01_0", 8, 8, 40, 40]
    assert len(pd.read_csv(data / "splits" / "splits_0.csv")["val"].dropna()) == 8
