"""summarize_cv over repeats and seeds, through the runner."""

import pandas as pd
import pytest

from src import config
from src.runs.execution import execute, open_rundir
from src.runs.lineage import StaleRunError
from tests.synthetic import make_feature_folder

pytestmark = pytest.mark.slow
config.register_resolvers()
DRAWS = ((), ("fold=1",), ("repeat=1",), ("repeat=1", "seed=2"))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("draws")
    make_feature_folder(folder / "features", n_slides=24, n_patches=6)
    base = ["exp=features", "name=small", f"dataset.dir={folder / 'features'}", "dataset.positive_class=tumor"]
    base += [f"paths.{name}={folder / name}" for name in ("data", "runs", "cache")]
    base += ["splits.n_folds=3", "mil.max_epochs=1", "mil.methods=[max_activations,attention_activations]"]
    base += ["summary.n_bootstrap=50", "trainer=cpu"]

    def run(task, *overrides):
        typed = [*base, *overrides, f"task={task}"]
        composed = config.compose(typed)
        return execute(composed, typed), open_rundir(config.resolve(composed), typed)

    for repeat in (0, 1):
        run("splits", f"repeat={repeat}")
    for draw in DRAWS:
        run("train_mil", *draw)
    return run


def test_all_repeats_and_seeds_are_gathered_unless_one_is_chosen(start):
    results, rundir = start("summarize_cv")
    assert results["n_folds"] == len(DRAWS)
    folds = pd.read_csv(rundir.table("folds"))
    found = set(folds[["fold", "repeat", "seed"]].itertuples(index=False, name=None))
    assert found == {(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 1, 2)}
    summary = pd.read_csv(rundir.table("summary"))
    assert set(summary["n_draws"]) == {3}
    assert (rundir.path / "plots" / "roc_folds.png").is_file()
    assert r"\toprule" in rundir.table("table").with_suffix(".tex").read_text()
    assert len(pd.read_csv(rundir.table("comparisons"))) == 4
    assert {one.name for one in rundir.recorded() if one.what == "run"} == {
        *("train_mil fold 0", "train_mil fold 1", "train_mil fold 0_repeat_1", "train_mil fold 0_repeat_1_seed_2")
    }
    # Asked again it is finished: what it was made from is found and unchanged.
    before = rundir.manifest_path.stat().st_mtime_ns
    assert start("summarize_cv")[0] == results
    assert rundir.manifest_path.stat().st_mtime_ns == before
    own, of_repeat = start("summarize_cv", "repeat=1")
    assert own["n_folds"] == 1
    assert of_repeat.path.parent.name == "repeat_1"


def test_a_run_of_another_repeat_that_is_out_of_date_is_refused_with_its_command(start):
    run = start("train_mil", "repeat=1")[1]
    table = run.table("predictions")
    text = table.read_text()
    table.write_text(text + "\n")
    try:
        with pytest.raises(StaleRunError, match=r"fold_0_repeat_1/train_mil.*repeat=1 seed=0 task=train_mil overwrite"):
            start("summarize_cv")
    finally:
        table.write_text(text)
