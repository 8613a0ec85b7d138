"""train.residency=stream: an SAE trains on what the backbone computes from slides meanwhile."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from src import config
from src.data.readers.features import FeatureFolder
from src.records import read_items
from src.runs.execution import execute
from src.split_files import FoldSplit, read_split
from src.tasks import train_sae
from src.tasks.streaming import open_stream
from tests.data.readers.opened import look, read

pytest.importorskip("openslide")

SETTINGS = (
    "exp=quickstart_small",
    "dataset.standardize=false",
    "tile.patch_size=48",
    "backbone.image_size=48",
    "dataset.generator.n_slides=10",
    "dataset.generator.n_cases=10",
    "dataset.generator.size=384",
    "splits.n_folds=2",
    "trainer=cpu",
)
STREAM = ("task=train_sae", "train.residency=stream")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """Ten slides, cut, embedded and split."""
    folder = tmp_path_factory.mktemp("slides")
    for task in ("tile", "embed", "splits"):
        execute(config.compose(compose_of(folder, f"task={task}")), compose_of(folder, f"task={task}"))
    return folder


def compose_of(folder, *overrides):
    config.register_resolvers()
    return [*SETTINGS, f"paths.data={folder / 'data'}", f"paths.runs={folder / 'runs'}", *overrides]


def resolve(folder, *overrides):
    return config.resolve(config.compose(compose_of(folder, *STREAM, *overrides)))


@pytest.mark.slow
def test_activations_are_those_that_embed_writes_bit_for_bit_where_batches_are_equal(embedded):
    cfg = resolve(embedded)
    fold = open_stream(cfg)
    split = read_split(cfg.dataset.splits_dir, 0)
    assert fold.split == split
    features = FeatureFolder(cfg.dataset.features_dir)
    for parts in ("train", "val"):
        rows = fold.rows(parts)
        expected = [read(features, item_id) for item_id in split.item_ids(parts)]
        assert min(len(one) for one in expected) > 10
        assert rows.slide_starts.tolist() == [0, *np.cumsum([len(one) for one in expected])[:-1]]
        np.testing.assert_array_equal(rows.read(0, rows.n_rows), np.concatenate(expected))
        # Other batches round otherwise.
        start, stop = len(expected[0]) - 3, len(expected[0]) + 4
        np.testing.assert_allclose(
            rows.read(start, stop), np.concatenate([*expected, expected[0]])[start:stop], rtol=1e-4, atol=1e-5
        )


def test_threads_read_side_by_side(embedded):
    rows = open_stream(resolve(embedded, "embed.batch_size=5")).rows("train")
    spans = [(start, min(start + 20, rows.n_rows)) for start in range(0, rows.n_rows, 20)]
    alone = [rows.read(*span) for span in spans]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda span: rows.read(*span), spans))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_resumed_stream_goes_on_with_the_rows_that_are_missing(embedded):
    settings = ("train.batch_size=4", "train.block_size=2", "train.n_workers=2")

    def open_data():
        cfg = resolve(embedded, *settings)
        return train_sae.open_data(cfg, train_sae.open_train_fold(cfg))

    whole, broken, resumed = open_data(), open_data(), open_data()
    blocks = [np.concatenate(block) for block in whole.train_dataloader()]
    assert sum(len(block) for block in blocks) == whole.train_rows.n_rows
    running = iter(broken.train_dataloader())
    for _ in range(2):
        next(running)
    state = broken.state_dict()
    broken.teardown("fit")
    assert state["order"] == "permutation"  # one window holds these few rows
    resumed.load_state_dict(state)
    found = [np.concatenate(block) for block in resumed.train_dataloader()]
    assert len(found) == len(blocks) - 2 > 1
    for one, other in zip(found, blocks[2:], strict=True):
        np.testing.assert_array_equal(one, other)
    other = open_data()
    other.train_rows.identity = "of another backbone"
    with pytest.raises(ValueError, match="Expected a checkpoint made with data=of another backbone"):
        other.load_state_dict(state)


def test_leakage_rule_knows_slides_and_cases_but_no_digest(embedded):
    cfg = resolve(embedded)
    fold = open_stream(cfg)
    cases = {slide.item_id: slide.case_id for slide in read_items(cfg.dataset.metadata_csv)}
    features = FeatureFolder(cfg.dataset.features_dir)
    assert [(slide.item_id, slide.case_id, slide.digest, slide.n_patches) for slide in fold.fitted("train")] == [
        (item_id, cases[item_id], "", look(features, item_id).n_rows) for item_id in fold.split.train
    ]


def test_slides_without_patches_are_an_error_or_left_out(embedded, tmp_path, caplog):
    cfg = resolve(embedded)
    lost = read_split(cfg.dataset.splits_dir, 0).train[0]
    for path in (Path(cfg.dataset.patches_dir) / "patches").glob("*.h5"):
        if path.stem != lost:
            (tmp_path / "patches").mkdir(exist_ok=True)
            (tmp_path / "patches" / path.name).symlink_to(path)
    other = f"dataset.patches_dir={tmp_path}"
    with pytest.raises(FileNotFoundError, match=rf"{lost}\.h5, found none\. Make it with task=tile"):
        open_stream(resolve(embedded, other))
    split = open_stream(resolve(embedded, other, "dataset.on_bad_file=skip")).split
    assert isinstance(split, FoldSplit)
    assert split.train == read_split(cfg.dataset.splits_dir, 0).train[1:]
    assert split.test == read_split(cfg.dataset.splits_dir, 0).test
    assert f"Skipped slide {lost}: Expected a patch file" in caplog.text


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("trainer.devices=2", r"Expected trainer\.devices=1 .* got 2.*task=embed first, then train\.residency=mmap"),
        ("dataset.standardize=true", r"Expected dataset\.standardize=false .*sae\.input_norm=.*task=embed first"),
    ],
)
def test_what_cannot_be_streamed_is_refused(embedded, override, match):
    with pytest.raises(ValueError, match=match):
        open_stream(resolve(embedded, override))


@pytest.mark.slow
def test_points_of_archetypal_are_not_streamed(embedded):
    typed = compose_of(embedded, *STREAM, "sae=archetypal")
    with pytest.raises(ValueError, match=r"Expected another SAE than sae=archetypal.*task=embed first"):
        execute(config.compose(typed), typed)


@pytest.mark.parametrize("task", ["train_sae", "train_sae_sweep"])
def test_datasets_without_slides_are_refused_with_the_remedy(tmp_path, task):
    config.register_resolvers()
    for typed in (["exp=features", f"dataset.dir={tmp_path}"], ["exp=tensors", "dataset.tensors.train=x.npy"]):
        with pytest.raises(ValueError, match="Expected a complete") as raised:
            config.check_start(config.compose([*typed, f"task={task}", "train.residency=stream"]))
        for key in ("patches_dir: found no path; make it with task=tile", "slides_dir: found no path; give"):
            assert f"task={task} needs dataset.{key}" in str(raised.value)
        assert "another train.residency than stream" in str(raised.value)
        assert "features_dir" not in str(raised.value)


def test_a_backbone_is_needed(tmp_path):
    config.register_resolvers()
    typed = ["dataset=synthetic_slides", f"paths.data={tmp_path}", "task=tile", "train.residency=stream"]
    with pytest.raises(ValueError, match="got backbone=none: give backbone=<name>"):
        open_stream(config.resolve(config.compose(typed)))
