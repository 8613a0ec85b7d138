"""The directory of a run follows from the values of its configuration."""

import contextlib
import itertools
import json

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from src import config
from src.runs.identity import draws_of, folds_of, is_neutral, result_values, run_path, same, variant

config.register_resolvers()
GROUPS = ("dataset", "sae", "train")
BASE = {"sae": {"name": "batch_topk", "k": 16}, "train": {"lr": 0.001, "n_workers": 1}, "mil": {"lr": 1}}
TASKS = ("tile", "embed", "train_sae", "encode", "select_neurons", "train_mil", "report")


def resolved(*typed):
    return config.resolve(config.compose(typed))


def place(task, *typed):
    return run_path(resolved("paths.runs=r", *typed), task).relative_to("r").as_posix()


def named(values, base=BASE, chosen=None, groups=GROUPS):
    return variant(values, base, chosen or base, groups)


def test_without_differences_it_is_default():
    assert named(BASE) == "default"
    assert named({**BASE, "mil": {"lr": 2}}) == "default"
    assert named({**BASE, "train": {"lr": 1e-3, "n_workers": 8}}) == "default"


def test_choices_come_before_the_keys_that_differ_from_them():
    topk = {"name": "topk", "k": 16, "inference": "topk"}
    values = {**BASE, "sae": topk | {"k": 8}, "train": {"lr": 0.1, "n_workers": 1}}
    assert named(values, chosen={**BASE, "sae": topk}) == "sae-topk+sae.k-8+train.lr-0.1"
    assert named({**BASE, "sae": {"name": "batch_topk"}}) == "sae.k-removed"


def test_different_values_never_share_a_name():
    values = [
        "a,b",
        "a b",
        "a:b",
        "a%b",
        "a_b",
        "a-b",
        "a+b",
        ["a", "b"],
        8,
        "8",
        None,
        "null",
        True,
        "true",
        1,
        1.5,
        "",
        {},
    ]
    names = {named({"sae": {"x": value}}, {"sae": {"x": "other"}}) for value in values}
    assert len(names) == len(values)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._+-") for name in names)


def test_equal_numbers_are_one_value_and_truth_is_no_number():
    assert result_values({"sae": {"a": 8.0, "b": [1.0, 2]}}, GROUPS) == {"sae.a": 8, "sae.b": [1, 2]}
    assert same(8, 8)
    assert not same(True, 1)


@pytest.mark.parametrize(
    "key", ["dataset.name", "dataset.features_dir", "dataset.tensors.train", "backbone.checkpoint", "train.residency"]
)
def test_places_and_speed_are_neutral(key):
    assert is_neutral(key)
    assert not is_neutral("dataset.standardize")


def test_typing_a_default_changes_nothing():
    assert place("train_sae", "exp=quickstart", "sae=batch_topk", "sae.k=16", "train=default") == (
        "quickstart/default/fold_0/train_sae"
    )


def test_presets_of_one_name_share_the_base_of_that_name():
    assert place("train_sae", "exp=camelyon16_conch_3") == place("train_sae", "exp=camelyon16_conch", "fold=3")
    typed = ("dataset=camelyon16", "backbone=conch", "tile.patch_level=1", "splits=fixed_test", "splits.shuffle=legacy")
    assert place("train_sae", *typed).startswith("camelyon16_conch/default/")


def test_what_shapes_a_later_task_leaves_the_earlier_ones_where_they_are():
    typed = ("exp=quickstart", "selection.method=auroc", "mil.lr=0.1")
    assert place("train_sae", *typed) == "quickstart/default/fold_0/train_sae"
    assert place("select_neurons", *typed) == "quickstart/selection.method-auroc/fold_0/select_neurons"
    assert place("train_mil", *typed) == "quickstart/mil.lr-0.1+selection.method-auroc/fold_0/train_mil"
    assert place("encode", "exp=quickstart", "tile.min_tissue=0.3").startswith("quickstart/tile.min_tissue-0.3/")


@pytest.mark.slow
def test_fold_repeat_and_seed_are_directories():
    assert place("train_sae", "exp=quickstart", "fold=2", "repeat=1", "seed=7") == (
        "quickstart/default/fold_2_repeat_1_seed_7/train_sae"
    )
    assert place("report", "exp=quickstart", "seed=7") == "quickstart/default/seed_7/report"
    assert place("encode", "exp=quickstart", "fold=all").startswith("quickstart/default/fold_all/")


def test_tasks_on_a_data_set_are_named_by_the_folder_they_write():
    assert place("tile", "exp=quickstart") == "synthetic_slides/tile/patches_96_level0"
    assert place("tile", "exp=quickstart", "tile.mpp=0.5") == "synthetic_slides/tile/patches_96_0.5mpp"
    assert place("embed", "exp=quickstart", "backbone.layer=1").endswith("random_resnet10t_layer1_mean_96px_96_level0")


def test_an_explicit_run_enters_by_its_results_and_shadows_what_it_was_made_of(tmp_path):
    places = set()
    for digest in ("aaaa1111", "bbbb2222"):
        run = tmp_path / digest
        (run / "export").mkdir(parents=True)
        (run / "export" / "cfg.json").touch()
        (run / "manifest.json").write_text(json.dumps({"status": "completed", "digest": digest}))
        places.add(place("encode", "exp=quickstart", f"sae_run={run}", "sae.k=4"))
        assert place("train_sae", "exp=quickstart", f"sae_run={run}") == "quickstart/default/fold_0/train_sae"
    assert places == {f"quickstart/sae_run-{digest}/fold_0/encode" for digest in ("aaaa1111", "bbbb2222")}


def test_long_names_are_closed_by_a_digest_of_the_whole():
    typed = [f"sae.{key}=0.123" for key in ("aux_coefficient", "class_token_weight", "expansion", "l1_coefficient")]
    first, second = (place("train_sae", "exp=quickstart", *typed, last) for last in ("sae.k=1", "sae.k=2"))
    assert first != second
    assert len(first.split("/")[1]) <= 80


def test_folds_are_those_of_the_same_repeat_and_seed(tmp_path):
    for name in ("fold_0", "fold_10", "fold_2", "fold_all", "fold_0_seed_1", "fold_1_seed_1"):
        (tmp_path / name).mkdir()
    assert [fold for fold, _ in folds_of(tmp_path / "fold_2" / "encode")] == ["0", "2", "10", "all"]
    assert [fold for fold, _ in folds_of(tmp_path / "fold_1_seed_1" / "encode")] == ["0", "1"]


def test_under_no_repeat_and_seed_the_runs_of_all_are_found(tmp_path):
    for name in ("fold_0", "fold_10", "fold_2_repeat_1", "fold_0_repeat_1_seed_3", "fold_0_seed_3", "fold_1"):
        (tmp_path / name / "encode").mkdir(parents=True)
    (tmp_path / "fold_5").mkdir()  # without a run of the task
    found = [tuple(draw) for draw, _ in draws_of(tmp_path / "fold_7" / "encode")]
    assert found == [("0", 0, 0), ("1", 0, 0), ("10", 0, 0), ("0", 0, 3), ("2", 1, 0), ("0", 1, 3)]
    assert [tuple(draw) for draw, _ in draws_of(tmp_path / "fold_7_repeat_1" / "encode")] == [("2", 1, 0)]


# Pieces of command lines, among them several spellings of equal values.
_PIECES = """
    exp=quickstart exp=camelyon16_conch exp=camelyon16_conch_1 sae=topk sae=batch_topk sae.k=16 sae.k=8
    sae=relu_l1 train=default train=sae1n train.lr=1e-3 train.lr=0.001 train.betas=[0.9,0.99]
    train.betas=[0.8,0.99] train.n_workers=3 train.residency=mmap seed=0 seed=1 fold=0 fold=1 repeat=1
    selection.method=auroc selection.method=welch mil.lr=0.0001 mil.lr=1e-2 dataset.standardize=true
    dataset.standardize=false dataset.dir=/elsewhere backbone=uni backbone=conch tile.patch_level=1
    tile.patch_level=0 embed.batch_size=7 mil/pool@mil.pools.attention=gated_attention
    mil.pools.attention.gated=true evaluation.split=val+test sae.class_token_weight=1 sae.class_token_weight=1.0
    dataset.class_names=[a,b]
"""
_LINES = st.lists(st.sampled_from(_PIECES.split()), max_size=5, unique_by=lambda piece: piece.partition("=")[0])


# Composing takes long, so lines are drawn together and every two of them compared; what fails is not made smaller.
_SETTINGS = settings(
    max_examples=3, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck)
)


def composed(lines):
    """Resolves command lines; those that Hydra refuses (sae=relu_l1 has no k) are left out of the property."""
    for pieces in lines:
        with contextlib.suppress(ConfigCompositionException):
            yield resolved(*pieces)


def shaping(cfg, task):
    values, graph = config.to_container(cfg), config.tasks()
    drawn = ("fold", "repeat", "seed") if graph[task].scope == "fold" else ("repeat", "seed")
    return json.dumps([result_values(values, graph.groups(task)), [values[key] for key in drawn], values["name"]])


@pytest.mark.slow
@settings(_SETTINGS)
@given(st.lists(_LINES, min_size=12, max_size=12))
def test_equal_values_share_a_directory_and_different_ones_do_not(lines):
    cfgs = list(composed(lines))
    for task in ("train_sae", "select_neurons", "train_mil", "report"):
        shaped = [(shaping(cfg, task), run_path(cfg, task)) for cfg in cfgs]
        for (values, path), (other_values, other_path) in itertools.combinations(shaped, 2):
            assert (path == other_path) == (values == other_values)


@pytest.mark.slow
@settings(_SETTINGS)
@given(st.lists(_LINES, min_size=3, max_size=3))
def test_every_directory_can_be_typed_as_an_override(lines):
    for cfg, task in itertools.product(composed(lines), TASKS):
        path = run_path(cfg, task)
        (override,) = OverridesParser.create().parse_overrides([f"sae_run={path}"])
        assert override.value() == str(path)
        assert not override.is_sweep_override()
