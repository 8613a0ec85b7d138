"""Every value is of its kind and within its limits; what is wrong is said in one sentence that names the key."""

import copy
from typing import get_args

import pytest
from omegaconf import OmegaConf

from src import config
from src.analysis.pooling import POOLS
from src.analysis.selection_rule import CHOICES
from src.checks.limit import SWITCH
from src.checks.limits import LIMITS
from src.checks.values import NONE, default_kinds, flat_values, kinds_of_files, limit_of, value_errors
from src.data.feeding.residency import RESIDENCIES
from src.data.slides.patch_labels import RULES
from src.models.saes.options import InputNorm
from src.stores.importers.registry import AUTO, FORMATS

config.register_resolvers()
KINDS = kinds_of_files(config.CONF_DIR, config._groups())


@pytest.fixture(scope="module")
def plain():
    """The values of every group: a key of one SAE is that of another."""
    cfg = config.compose(["exp=quickstart", "dataset.dir=x"])
    values = config.to_container(config._without_hydra(cfg))
    for name in ("jumprelu", "patchsae", "p_anneal", "archetypal", "matryoshka_batch_topk", "batch_topk"):
        other = OmegaConf.to_container(config.compose([f"sae={name}"]).sae)
        values["sae"] |= other
    return values


def changed(plain, key, value):
    values = copy.deepcopy(plain)
    *groups, name = key.split(".")
    node = values
    for group in groups:
        node = node[group]
    node[name] = value
    return values


def test_values_of_conf_are_right(plain):
    assert value_errors(plain, KINDS) == []


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("sae.k", 0, "a whole number of at least 1, got 0"),
        ("sae.k", 2.5, "a whole number of at least 1, got 2.5"),
        ("sae.k", True, "a whole number of at least 1, got true"),
        ("sae.k", None, "a whole number of at least 1, got null"),
        ("sae.n_latents", 0, "a whole number of at least 1 or null, got 0"),
        ("sae.n_latents", 8, "sae.k: expected at most sae.n_latents=8, got 16"),
        ("sae.expansion", 0, "a number above 0, got 0"),
        ("sae.expansion", "8x", "a number above 0, got '8x'"),
        ("sae.threshold_decay", 1.5, "a number of at least 0 and at most 1, got 1.5"),
        ("sae.use_b_enc", "maybe", "true or false, got 'maybe'"),
        ("sae.resample_every", 0, "a whole number of at least 1 or null, got 0"),
        ("train.epochs", -1, "a whole number of at least 1, got -1"),
        ("train.epochs", 0, "a whole number of at least 1, got 0"),
        ("train.n_validations", 0, "a whole number of at least 1, got 0"),
        ("train.batch_size", 0, "a whole number of at least 1, got 0"),
        ("train.batch_size", 10.5, "a whole number of at least 1, got 10.5"),
        ("train.block_size", "many", "a whole number of at least 1, got 'many'"),
        ("train.warmup_steps", -5, "a whole number of at least 0, got -5"),
        ("train.lr", 0, "a number above 0, got 0"),
        ("train.lr", "fast", "a number above 0, got 'fast'"),
        ("train.lr", float("nan"), "a number above 0, got nan"),
        ("train.lr", float("inf"), "a number above 0, got inf"),
        ("train.decay_fraction", 1.5, "a number of at least 0 and at most 1, got 1.5"),
        ("train.n_workers", -1, "a whole number of at least 0, got -1"),
        ("train.betas", [0.9, 1.0], "a number of at least 0 and below 1, got 1.0"),
        ("train.betas", [0.9], "a list of two numbers, got [0.9]"),
        ("train.betas", 0.9, "a list of two numbers, got 0.9; as a list it is typed train.betas=[0.9]"),
        ("train.residency", "disk", "auto, gpu, ram, mmap or stream, got 'disk'"),
        ("train.max_grad_norm", 0, "a number above 0 or null, got 0"),
        ("dataset.standardize", "maybe", "true or false, got 'maybe'"),
        ("dataset.on_bad_file", "maybe", "error or skip, got 'maybe'"),
        ("fold", -1, "a whole number of at least 0, or all, got -1"),
        ("fold", "x", "a whole number of at least 0, or all, got 'x'"),
        ("seed", 1.5, "a whole number of at least 0 and at most 4294967295, got 1.5"),
        ("name", 2024, """text, got 2024; as text it is typed name="'2024'\""""),
        ("name", "", "text that is not empty, got ''"),
        ("mil.max_epochs", 0, "a whole number of at least 1, got 0"),
        ("mil.min_epochs", -1, "a whole number of at least 0, got -1"),
        ("mil.patience", 2.5, "a whole number of at least 1, got 2.5"),
        ("mil.batch_size", 0, "a whole number of at least 1, got 0"),
        ("mil.lr", -1e-4, "a number above 0, got -0.0001"),
        ("mil.methods", [], "a list that is not empty, got []"),
        ("mil.methods", ["max_foo"], "got 'max_foo'"),
        ("mil.pools", 3, "a group of values, got 3"),
        ("mil.pools.attention.dropout", 1, "a number of at least 0 and below 1, got 1"),
        ("selection.method", "t", "welch, mann_whitney, auroc, effect_size, logistic or mil_weights, got 't'"),
        ("selection.unit", "patient", "case or slide, got 'patient'"),
        ("selection.p_value", "exact", "guarded or welch, got 'exact'"),
        ("selection.split", "dev", "some of train+val+test, got 'dev'"),
        ("selection.split", "train+train", "some of train+val+test, got 'train+train'"),
        ("evaluation.split", "all", "some of train+val+test, got 'all'"),
        ("evaluation.n_rows", 0, "a whole number of at least 1 or null, got 0"),
        ("evaluation.dense_above", 1e-6, "less than evaluation.dense_above=1e-06"),
        ("localization.label_rule", "most", "center, any, half or a share above 0, got 'most'"),
        ("localization.n_exemplar_neurons", 0, "a whole number of at least 1, got 0"),
        ("localization.exclude_slides", [7], """text, got 7; as text it is typed localization.exclude_slides="'7'\""""),
        ("splits.n_folds", 1, "a whole number of at least 2, got 1"),
        ("splits.val_share", 1, "a number above 0 and below 1, got 1"),
        ("summary.n_bootstrap", 0, "a whole number of at least 1, got 0"),
        ("summary.confidence", 95, "a number above 0 and below 1, got 95"),
        ("tile.patch_size", 0, "a whole number of at least 1, got 0"),
        ("tile.patch_level", -1, "a whole number of at least 0, got -1"),
        ("tile.n_workers", 0, "a whole number of at least 1, got 0"),
        ("report.max_image_width", 0, "a whole number of at least 1, got 0"),
        ("sweep.grid", "sae.k", "a list, got 'sae.k'; as a list it is typed sweep.grid=[sae.k]"),
        ("sae_run", 7, """text or null, got 7; as text it is typed sae_run="'7'\""""),
        ("trainer.num_nodes", 2, "1, the machine that the run is on, got 2"),
        ("encode.dense_formats", ["hdf5"], "h5 or pt, got 'hdf5'"),
    ],
)
def test_wrong_value_is_one_sentence_with_its_key(plain, key, value, expected):
    (error,) = value_errors(changed(plain, key, value), KINDS)
    assert error.endswith(expected) or expected in error
    assert "\n" not in error
    if not expected.startswith("sae.k:"):
        assert error.startswith(f"{key}: expected ") or key == "evaluation.dense_above"


def kinds_of(key):
    return KINDS.get((key.partition(".")[0] if "." in key else "", key.rpartition(".")[2]), frozenset())


def test_every_switch_of_conf_takes_nothing_but_true_and_false(plain):
    switches = [key for key, _ in flat_values(plain) if kinds_of(key) == {SWITCH} and key != "trainer.deterministic"]
    assert len(switches) > 20
    for key in switches:
        for value in ("maybe", 1, None):
            (error,) = value_errors(changed(plain, key, value), KINDS)
            assert error.startswith(f"{key}: expected true or false, got ")


def test_all_mistakes_are_said_together(plain):
    values = changed(changed(plain, "sae.k", 0), "train.epochs", -1)
    assert [error.partition(":")[0] for error in value_errors(values, KINDS)] == ["sae.k", "train.epochs"]


def test_kinds_are_those_of_all_files_of_a_group():
    kinds = default_kinds(
        [("train", {"norm": 1.0, "betas": [0.9, 0.99]}), ("train", {"norm": None, "inner": {"n": 3}})]
    )
    assert kinds[("train", "norm")] == {"a number", NONE}
    assert kinds[("train", "betas")] == {"a list"}
    assert kinds[("train", "betas[]")] == {"a number"}
    assert kinds[("train", "n")] == {"a whole number"}


def test_key_that_is_null_everywhere_has_a_limit_that_says_its_kind(plain):
    for key in [key for key, value in flat_values(plain) if value is None]:
        limit = limit_of(key)
        assert kinds_of(key) - {NONE} or (limit is not None and limit.kinds), (
            f"state what {key} may be in src/checks/limits.py"
        )


def test_key_of_a_users_own_may_be_anything(plain):
    assert value_errors(plain | {"mine": {"x": -3.5, "y": None}}, KINDS) == []


def test_choices_are_those_that_the_code_knows():
    def takes(key, choices):
        accepts = LIMITS[key].accepts
        assert all(accepts(choice) for choice in choices)
        assert LIMITS[key].words.replace(" or ", ", ").split(", ") == list(choices)

    takes("train.residency", RESIDENCIES)
    assert all(LIMITS["localization.label_rule"].accepts(choice) for choice in (*RULES, 0.25, 1))
    assert not any(LIMITS["localization.label_rule"].accepts(choice) for choice in ("most", 0, 1.5))
    takes("convert.format", (AUTO, *FORMATS))
    takes("selection.pool", POOLS)
    for name, choices in CHOICES.items():
        takes(f"selection.{name}", choices)


def test_choices_of_a_class_are_read_from_its_annotations(monkeypatch):
    monkeypatch.setattr(config, "missing_data", lambda _: [])
    cfg = config.compose(["sae.input_norm=zscore", "task=train_sae"])
    with pytest.raises(ValueError, match=f"sae.input_norm: expected one of {', '.join(get_args(InputNorm))}, got 'zsc"):
        config.check_start(cfg)
