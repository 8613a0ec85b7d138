"""A search that is killed in the middle of a trial goes on with that trial, and none is lost."""

import signal

import pandas as pd
import pytest

from tests.command import Command, wait_for
from tests.e2e.test_features import run, typed
from tests.synthetic import make_feature_folder

pytestmark = pytest.mark.slow
SEARCH = (
    "task=search",
    "+search.space={train.lr:{low:0.001,high:0.01,log:true}}",
    "search.maximize=[val/explained_variance]",
    "search.n_trials=3",
)


def test_a_search_killed_in_a_trial_goes_on_with_it(tmp_path):
    pytest.importorskip("optuna")
    workplace = make_feature_folder(tmp_path / "features").parent
    process = Command(typed(workplace, *SEARCH))
    wait_for(lambda: len(list(workplace.rglob("train_sae/checkpoints/last.ckpt"))) == 2)
    process.send_signal(signal.SIGKILL)
    code, said = process.wait()
    assert code == -signal.SIGKILL, said
    begun = list(workplace.rglob("train_sae/checkpoints/last.ckpt"))
    assert len(list(workplace.rglob("train_sae/results.json"))) == 1
    said = run(workplace, *SEARCH)
    assert "Resuming the unfinished run" in said
    (path,) = workplace.rglob("search/analysis/trials.csv")
    table = pd.read_csv(path)
    assert list(table["state"]) == ["complete"] * 3
    trained = {path.parent for path in workplace.rglob("train_sae/results.json")}
    assert {workplace / "runs" / one for one in table["run"]} == trained
    assert {path.parents[1] for path in begun} < trained
    assert len(trained) == 3
