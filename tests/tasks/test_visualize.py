"""task=visualize on images of red squares: pictures, contact sheets, and scores against the squares' boxes."""

import json
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from src import config
from src.report.page import read_page
from src.runs.execution import execute, open_rundir
from src.tasks.visualize import choose_images, missing_inputs

N_IMAGES, HEIGHT, WIDTH, SIDE = 48, 60, 80, 20


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Grey noise; every second image has a red square of 20 x 20 somewhere, and its box. Neurons are ranked."""
    root = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    (root / "images").mkdir()
    table, boxes = [], []
    for number in range(N_IMAGES):
        pixels = rng.integers(90, 160, (HEIGHT, WIDTH, 1), np.uint8).repeat(3, axis=2)
        item_id = f"i{number:02d}"
        if number % 2:
            left, top = int(rng.integers(4)) * SIDE, int(rng.integers(3)) * SIDE
            pixels[top : top + SIDE, left : left + SIDE] = [230, 10, 10]
            boxes.append((item_id, "square", left, top, left + SIDE, top + SIDE))
            boxes.append((item_id, "image", 0, 0, WIDTH, HEIGHT))
        part = "train" if number < 28 else "val" if number < 32 else "test"
        table.append((item_id, f"{item_id}.png", ("plain", "square")[number % 2], part))
        Image.fromarray(pixels).save(root / "images" / f"{item_id}.png")
    pd.DataFrame(table, columns=["image_id", "path", "label", "split"]).to_csv(root / "images.csv", index=False)
    columns = ["image_id", "label", "xmin", "ymin", "xmax", "ymax"]
    pd.DataFrame(boxes, columns=columns).to_csv(root / "boxes.csv", index=False)
    for task in ("metadata", "embed", "train_sae", "encode", "select_neurons"):
        run(root, task)
    return root


def typed(root, task, *overrides):
    config.register_resolvers()
    places = [f"paths.{name}={root / name}" for name in ("data", "runs", "cache")]
    images = ["exp=images", "dataset=image_table", f"dataset.dir={root / 'images'}", "name=squares"]
    listing = [f"dataset.listing.csv={root / 'images.csv'}", "dataset.listing.columns.split=split"]
    listing += [f"dataset.listing.boxes={{csv:{root / 'boxes.csv'}}}", "dataset.positive_class=square"]
    vit = ["backbone=random_vit_tiny", "backbone.image_size=[48,64]", "+backbone.model_args={depth: 1}"]
    small = ["sae.expansion=0.5", "train.epochs=30", "train.batch_size=128", "trainer=cpu"]
    own = ["visualize.n_neurons=3", "visualize.n_sheet_images=2", "visualize.target_box=square", "visualize.n_random=5"]
    return [*images, *listing, *places, *vit, "backbone.tokens=patch", *small, *own, f"task={task}", *overrides]


def run(root, task, *overrides):
    overridden = typed(root, task, *overrides)
    cfg = config.compose(overridden)
    return execute(cfg, overridden), open_rundir(config.resolve(cfg), overridden)


def read(path):
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


pytestmark = pytest.mark.slow


def test_pictures_lie_where_the_guide_has_them_and_show_the_square(study):
    results, rundir = run(study, "visualize", "visualize.n_images=4", "visualize.thresholds=[0.3,0.5]")
    assert results["n_images"] == 4
    assert results["n_neurons"] == 3
    ranking = pd.read_csv(rundir.upstream("select_neurons").table("neurons"))
    best = int(ranking["neuron_id"][0])
    content = json.loads((rundir.path / "visuals_mask_th=0.5/all_results.json").read_text())
    assert sorted(content) == ["plain", "square"]
    for item_id, neurons in content["square"].items():
        folder = rundir.path / f"visuals_mask_th=0.5/class=square/image_id={item_id}"
        stored = np.asarray(Image.open(study / f"images/{item_id}.png"))
        np.testing.assert_array_equal(read(folder / "original_image.png"), stored)
        for name in ("heatmap", "heatmap_with_mask"):
            assert read(folder / f"neuron={best}_{name}.png").shape == (HEIGHT, WIDTH, 3)
        assert 0 < neurons[str(best)]["mean_activation"] < neurons[str(best)]["max_activation"]
        (box,) = neurons[str(best)]["boxes"]
        is_red = stored[..., 0] > 200
        y, x = np.nonzero(is_red)
        assert abs(np.mean(x) - (box[0] + box[2]) / 2) < SIDE / 2
        assert abs(np.mean(y) - (box[1] + box[3]) / 2) < SIDE / 2
    page = read_page(rundir.page_path)
    assert len(page.figures) == 3
    assert (rundir.path / page.figures[0].path).is_file()
    assert any("by the image label alone" in text for text in page.paragraphs)


def test_the_neuron_of_the_image_label_finds_the_boxes_and_random_ones_do_not(study):
    results, rundir = run(study, "visualize", "visualize.n_images=4", "visualize.thresholds=[0.3,0.5]")
    assert results["test/square/neuron_pointing_accuracy"] == 1
    assert results["test/square/neuron_mask_iou"] > 0.4
    assert results["test/square/neuron_mask_iou"] > results["test/square/random_neurons_mask_iou"] + 0.2
    table = pd.read_csv(rundir.path / "analysis/boxes.csv")
    assert set(table["chosen_by"]) == {"image label", "train boxes", "at random"}
    assert set(table.loc[table["label"] == "image", "chosen_by"]) == {"train boxes", "at random"}
    assert (table.loc[table["label"] == "image", "chance_pointing"] == 1).all()


def test_a_ranking_without_channels_holds_only_its_neuron_against_the_boxes(study):
    with_channels, _ = run(study, "visualize", "visualize.n_images=4", "visualize.thresholds=[0.3,0.5]")
    without = ["selection.channels=false", "visualize.n_images=4", "visualize.thresholds=[0.3,0.5]"]
    run(study, "select_neurons", without[0])
    results, rundir = run(study, "visualize", *without)
    table = pd.read_csv(rundir.path / "analysis/boxes.csv")
    assert set(table.loc[table["chosen_by"] == "image label", "kind"]) == {"neuron"}
    left_out = {f"test/square/channel_{metric}" for metric in ("pointing_accuracy", "mask_iou", "box_iou")}
    assert with_channels.keys() - results.keys() == left_out
    assert all(results[key] == with_channels[key] for key in results if key.startswith("test/square/"))
    about = [text for text in read_page(rundir.page_path).paragraphs if text.startswith("square:")]
    assert about[0].endswith("because the ranking holds none (selection.channels=false).")


def test_named_neurons_need_no_ranking_and_a_class_filter_keeps_its_images(study):
    overrides = ["visualize.neurons=[3,1]", "visualize.class_filter=[square]", "visualize.n_images=2"]
    overrides.append("visualize.source=computed")
    results, rundir = run(study, "visualize", *overrides)
    assert results["n_neurons"] == 2
    content = json.loads((rundir.path / "visuals_mask_th=0.3/all_results.json").read_text())
    assert list(content) == ["square"]
    assert all(list(neurons) == ["3", "1"] for neurons in content["square"].values())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["visualize.neurons=[5000]"], r"visualize.neurons within 0:\d+, got \[5000\]"),
        (["visualize.n_images=17"], "at most the 16 images.*got 17"),
        (["visualize.class_filter=[circle]"], "classes among plain, square, got 'circle'"),
        (["visualize.n_neurons=100000"], "ranking of at least 100000 neurons"),
        (["visualize.target_box=circle"], r"visualize.target_box to be a label of boxes \(image, square\)"),
        (["visualize.class_filter=[plain]", "visualize.n_images=9"], "at most the 8 images"),
    ],
)
def test_what_does_not_exist_is_refused(study, overrides, message):
    with pytest.raises(ValueError, match=message):
        run(study, "visualize", *overrides)


@pytest.mark.parametrize(("edges", "is_wrong"), [((90, 10, 99, 20), True), ((70, 50, 99, 99), False)])
def test_boxes_outside_of_their_image_are_refused_and_others_cut(study, edges, is_wrong):
    (path,) = (study / "data").rglob("boxes.csv")
    kept = path.read_text()
    path.write_text(kept + ",".join(["i01", *map(str, edges), "square"]) + "\n")
    try:
        if is_wrong:
            with pytest.raises(ValueError, match="within image 'i01' of 80x60 pixels"):
                run(study, "visualize", "visualize.n_neurons=2")
        else:
            run(study, "visualize", "visualize.n_neurons=2")
    finally:
        path.write_text(kept)


def test_rows_without_a_place_cannot_be_drawn(study):
    assert missing_inputs(config.resolve(config.compose(typed(study, "visualize")))) == []
    (reason,) = missing_inputs(config.resolve(config.compose(typed(study, "visualize", "backbone.tokens=mean"))))
    assert reason.startswith("backbone.tokens=mean gives rows without a place in the image")
    (reason,) = missing_inputs(config.resolve(config.compose(typed(study, "visualize", "fold=all"))))
    assert reason.startswith("fold=all has no train items to choose neurons by")


def test_a_killed_start_leaves_nothing_in_the_way(study):
    _, rundir = run(study, "visualize", "visualize.n_images=4", "visualize.thresholds=[0.3,0.5]")
    shutil.rmtree(rundir.path / "plots")
    overrides = ["visualize.n_images=4", "visualize.thresholds=[0.3,0.5]", "overwrite=true"]
    assert len(list((run(study, "visualize", *overrides)[1].path / "plots").iterdir())) == 3


def test_images_are_drawn_class_by_class_in_turn():
    labels = {f"{label}{number}": label for label in "ab" for number in range(5)}
    chosen = choose_images(labels, 6, seed=0)
    assert [item_id[0] for item_id in chosen] == ["a", "b"] * 3
    assert choose_images(labels, 6, seed=0) == chosen
    assert len(choose_images(labels, None, seed=0)) == 8
    assert len(choose_images({"a": "x"}, None, seed=0)) == 1
    with pytest.raises(ValueError, match="at most the 10 images"):
        choose_images(labels, 11, seed=0)
