"""A grid of SAEs over folds becomes one sweep for each fold, and leaves what single commands leave."""

import itertools

import pytest

from src import config
from src.runs.execution import execute
from tests.command import run_command
from tests.synthetic import make_feature_folder

pytestmark = pytest.mark.slow
SAES, KS, FOLDS = ("batch_topk", "topk"), (4, 6, 8), (0, 1)


def test_a_grid_is_trained_in_one_pass_a_fold_and_equals_single_runs(tmp_path):
    config.register_resolvers()
    make_feature_folder(tmp_path / "features", n_slides=20, n_patches=20)
    typed = ["exp=features", f"dataset.dir={tmp_path / 'features'}", "dataset.positive_class=tumor", "name=small"]
    typed += [f"paths.data={tmp_path / 'data'}", "train.batch_size=64", "train.epochs=2", "train.n_validations=2"]
    typed += ["splits.n_folds=2", "trainer=cpu"]
    alone, grid = [*typed, f"paths.runs={tmp_path / 'alone'}"], [*typed, f"paths.runs={tmp_path / 'grid'}"]
    execute(config.compose([*alone, "task=splits"]), [*alone, "task=splits"])

    swept = [f"sae={','.join(SAES)}", f"sae.k={','.join(map(str, KS))}", "fold=range(2)"]
    launch = ["-m", *grid, *swept, "task=train_sae", "cluster=workers", "cluster.threads=1", "cluster.n_jobs=2"]
    said = run_command(*launch)
    assert said.count("6 SAEs of fold") == 2
    assert "train_sae: 2 jobs, 2 at once" in said
    assert "Of 12 runs 12 are finished" in run_command(*launch)

    for sae, k, fold in itertools.product(SAES, KS, FOLDS):
        overrides = [*alone, f"sae={sae}", f"sae.k={k}", f"fold={fold}", "task=train_sae"]
        execute(config.compose(overrides), overrides)
    names = ("sae_weights.safetensors", "metrics.csv", "results.json")

    def results(name):
        paths = [path for path in (tmp_path / name).rglob("train_sae/**/*") if path.name in names]
        return {path.relative_to(tmp_path / name): path.read_bytes() for path in paths}

    assert len(results("alone")) == 36
    assert results("grid") == results("alone")
