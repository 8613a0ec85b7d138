"""A search: its trials are usual runs, it goes on where it was stopped, and what is wrong is said before any work."""

import json

import pandas as pd
import pytest

from src import config
from src.analysis import search_study
from src.runs.execution import execute
from src.tasks import train_sae
from tests.synthetic import make_feature_folder

pytest.importorskip("optuna")
AXES = "sae.k:{low:2,high:8,log:true},train.lr:{low:0.001,high:0.1,log:true},sae:{choices:[topk,batch_topk]}"
SPACE = f"+search.space={{{AXES}}}"
TWO = ["search.maximize=[val/explained_variance]", "search.minimize=[val/l0]"]


@pytest.fixture
def typed(tmp_path):
    config.register_resolvers()
    make_feature_folder(tmp_path / "features", n_slides=20, n_patches=30)
    typed = ["exp=features", f"dataset.dir={tmp_path / 'features'}", "dataset.positive_class=tumor", "name=small"]
    typed += [f"paths.data={tmp_path / 'data'}", f"paths.runs={tmp_path / 'runs'}", "trainer=cpu", "splits.n_folds=2"]
    return [*typed, "train.batch_size=256", "train.epochs=2", "train.n_validations=1", "sae.expansion=2"]


def _search(typed, monkeypatch, *overrides):
    overrides = [*typed, "task=search", *overrides]
    monkeypatch.setattr(config, "hydra_overrides", lambda: overrides)
    return execute(config.compose(overrides), overrides)


def _trials(tmp_path):
    (path,) = (tmp_path / "runs").glob("**/search/analysis/trials.csv")
    return pd.read_csv(path)


@pytest.mark.slow
def test_trials_are_usual_runs_of_several_objectives(typed, monkeypatch, tmp_path):
    results = _search(typed, monkeypatch, SPACE, *TWO, "search.n_trials=4")
    assert (results["n_trials"], results["n_failed"]) == (4, 0)
    table = _trials(tmp_path)
    assert sorted(table["trial"]) == [0, 1, 2, 3]
    for _, row in table.iterrows():
        path = tmp_path / "runs" / row["run"]
        values = json.loads((path / "results.json").read_text())
        assert [values[key] for key in ("val/explained_variance", "val/l0")] == [
            row["val/explained_variance"],
            row["val/l0"],
        ]
        # The same command alone finds it finished.
        alone = [*typed, *(f"{key}={row[key]}" for key in ("sae.k", "train.lr", "sae")), "task=train_sae"]
        cfg = config.resolve(config.compose(alone))
        assert config.to_container(cfg)["sae"]["k"] == row["sae.k"]
        before = (path / "manifest.json").stat().st_mtime_ns
        execute(config.compose(alone), alone)
        assert (path / "manifest.json").stat().st_mtime_ns == before
    others = table.loc[~table["best"]]
    front = table.loc[table["best"]]
    for _, one in others.iterrows():
        beats = (front["val/explained_variance"] >= one["val/explained_variance"]) & (front["val/l0"] <= one["val/l0"])
        assert beats.any()
    (folder,) = (tmp_path / "runs").glob("**/search")
    assert (folder / "plots" / "pareto.png").is_file()
    assert results["val/explained_variance"] == table["val/explained_variance"].max()
    assert _search(typed, monkeypatch, SPACE, *TWO, "search.n_trials=4") == results  # finished
    report = [*typed, SPACE, *TWO, "search.n_trials=4", "task=report"]
    execute(config.compose(report), report)
    assert any("Search of settings" in path.read_text() for path in (tmp_path / "runs").glob("**/report.html"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("**/train_sae/results.json")}
    assert _search(typed, monkeypatch, SPACE, *TWO, "search.n_trials=4", "overwrite=true") == results
    assert before == {path: path.stat().st_mtime_ns for path in before}  # the same trials, found finished


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Checkpoint directory")  # as src/run.py
def test_a_stopped_search_goes_on_with_the_trial_that_was_at_work(typed, monkeypatch, tmp_path):
    one = [SPACE, "search.maximize=[val/explained_variance]", "search.n_trials=3"]
    _search([*typed[:5], f"paths.runs={tmp_path / 'whole'}", *typed[6:]], monkeypatch, *one)
    finish, calls = train_sae.finish_training, []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return finish(*arguments)

    with monkeypatch.context() as stopping:
        stopping.setattr(train_sae, "finish_training", stop)
        with pytest.raises(KeyboardInterrupt) as stopped:
            _search(typed, monkeypatch, *one)
    assert "1 of 3 trials" in stopped.value.__notes__
    _search(typed, monkeypatch, *one)
    (whole,) = (tmp_path / "whole").glob("**/search/analysis/trials.csv")
    assert whole.read_bytes() == next((tmp_path / "runs").glob("**/search/analysis/trials.csv")).read_bytes()
    assert len(list((tmp_path / "runs").glob("**/train_sae"))) == len(set(_trials(tmp_path)["run"]))


@pytest.mark.slow
def test_a_trial_that_diverges_is_noted_and_the_others_go_on(typed, monkeypatch, tmp_path):
    space = "+search.space={train.lr:{choices:[0.01,1.0e+30]}}"
    results = _search(typed, monkeypatch, space, "search.minimize=[val/fvu]", "search.n_trials=3", "search.seed=1")
    table = _trials(tmp_path)
    failed = table.loc[table["state"] == "fail"]
    assert 0 < results["n_failed"] == len(failed) < 3
    assert failed["error"].str.contains("diverged|finite").all()
    assert set(failed["train.lr"].astype(float)) == {1e30}


@pytest.mark.slow
def test_a_search_ends_when_all_trials_fail(typed, monkeypatch):
    space = "+search.space={train.lr:{choices:[1.0e+29,1.0e+30]}}"
    with pytest.raises(ValueError, match="got 1 that failed and no other, the first with: train_sae: "):
        _search(typed, monkeypatch, space, "search.minimize=[val/fvu]", "search.n_trials=1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["search=sae_frontier", "task=train_mil"], r"search: expected search=sae_frontier with task=search"),
        (["search=sae_frontier", "search.n_trials=0"], r"search\.n_trials: expected a whole number of at least 1"),
        (["search=sae_frontier", "search.sampler=cmaes"], r"search\.sampler: expected tpe, random or nsga2"),
        (["search=sae_frontier", "search.maximize=[test/auroc]"], r"results on validation items, got test/auroc"),
        (["search=sae_frontier", "search.minimize=[val/l0,val/l0]"], r"each result once, got val/l0"),
        (["search=sae_frontier", "search.space={sae.k:{low:200}}"], r"space\.sae\.k: expected low below high, got 200"),
        (["search=sae_frontier", "search.space={sae.k:{low:0}}"], r"with log: true a low above 0"),
        (["search=sae_frontier", "search.space={sae.k:{low:a}}"], r"space\.sae\.k\.low: expected a number"),
        (["search=sae_frontier", "+search.space={sae:{choices:[]}}"], r"space\.sae: expected choices, got none"),
        (["search=sae_frontier", "+search.space={sae:{options:[a]}}"], r"low and high .* got options"),
        (["search=sae_frontier", "+search.space={seed:3}"], r"search\.space\.seed: expected low and high .* got 3"),
        (["search=sae_frontier", "sae.k=8"], r"keys in search\.space that are not typed too, got sae\.k"),
        (["search=sae_frontier", "search.task=pipeline"], r"search\.task to be a single task of a fold, got pipeline"),
        (["search=sae_frontier", "search.task=nothing"], r"Expected a task among"),
        (["search=sae_frontier", "+search.space={sae.kk:{low:1,high:2}}"], r"sae\.kk"),
        (["search=sae_frontier", "+search.space={train.betas:{choices:[0]}}"], r"train\.betas"),
        (["task=search"], r"give search=<name>"),
        (
            ["search=sae_frontier", "search.minimize=[val/nothing]"],
            r"name results of the task \(val/fvu.*got val/nothing",
        ),
    ],
)
def test_what_is_wrong_with_a_search_is_said(typed, monkeypatch, overrides, message):
    typed = [*typed[:-1], *overrides]  # without sae.expansion, which the space has
    monkeypatch.setattr(config, "hydra_overrides", lambda: typed)
    with pytest.raises(Exception, match=message):
        execute(config.compose(typed), typed)


def test_without_optuna_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ValueError, match=r"pip install optuna"), search_study.open_study(tmp_path / "a", ["maximize"]):
        pass


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.000123456, "k=0.0001235"), (True, "k=true"), (None, "k=null"), (7, "k=7"), ("[1,2]", "k=[1,2]")],
)
def test_values_are_spelt_as_they_are_typed(value, text):
    assert search_study.overrides_of({"k": value}) == [text]
