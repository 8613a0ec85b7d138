"""A sweep on one stream leaves what the runs alone would leave, bit for bit."""

import json
import shutil

import pandas as pd
import pytest
import torch

from src import config
from src.models.saes.jumprelu import JumpReLU
from src.modules.sae import SAEModule
from src.runs.execution import execute
from src.training.members import MemberCheckpointIO
from tests.synthetic import make_feature_folder

GRID = ["sae=batch_topk,jumprelu,relu_l1,archetypal", "sae.expansion=2,4"]


@pytest.fixture
def typed(tmp_path):
    config.register_resolvers()
    make_feature_folder(tmp_path / "features", n_slides=20, n_patches=30)
    typed = ["exp=features", f"dataset.dir={tmp_path / 'features'}", "dataset.positive_class=tumor", "name=small"]
    typed += [f"paths.data={tmp_path / 'data'}", "train.batch_size=64", "train.block_size=2", "train.epochs=6"]
    typed += ["train.n_validations=3", "splits.n_folds=2", "train.lr=0.01", "trainer=cpu"]
    _execute([*typed, f"paths.runs={tmp_path / 'runs'}", "task=splits"])
    return typed


def _execute(overrides):
    return execute(config.compose(overrides), overrides)


def _sweep(typed, monkeypatch, runs, grid=GRID):
    overrides = [*typed, f"paths.runs={runs}", "task=train_sae_sweep", f"sweep.grid={json.dumps(list(grid))}"]
    monkeypatch.setattr(config, "hydra_overrides", lambda: overrides)
    return _execute(overrides)


def _files(runs):
    names = ("sae_weights.safetensors", "cfg.json", "metrics.csv", "results.json", "fitted_on.csv")
    return {
        path.relative_to(runs): path.read_bytes()
        for path in runs.rglob("*")
        if path.name in names and path.parent.name != "train_sae_sweep"
    }


@pytest.mark.slow
def test_runs_of_a_sweep_equal_runs_alone(typed, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    alone, together = tmp_path / "alone", tmp_path / "together"
    for combination in config.expand_grid(GRID):
        _execute([*typed, *combination, f"paths.runs={alone}", "task=train_sae"])
    results = _sweep(typed, monkeypatch, together)
    assert results["n_runs"] == 8
    expected = _files(alone)
    assert len(expected) == 8 * 6  # fitted_on.csv also in the export
    assert _files(together) == expected
    mixing = [pd.read_csv(path)["data/slide_entropy"].dropna() for path in alone.rglob("metrics.csv")]
    assert [len(epochs) for epochs in mixing] == [6] * 8
    assert all(0.8 < value < 1.2 for epochs in mixing for value in epochs)
    (sweep,) = together.glob("**/train_sae_sweep")
    table = pd.read_csv(sweep / "analysis" / "sweep.csv")
    assert len(table) == 8
    assert {"sae", "sae.expansion", "val/explained_variance"} <= set(table.columns)
    assert (sweep / "plots" / "frontier.png").stat().st_size > 5000
    logs = [path for path in together.rglob("run.log") if path.parent.name == "train_sae"]
    assert len(logs) == 8
    assert all(f"train_sae in {path.parent}" in path.read_text() for path in logs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_broken_off_sweep_goes_on_where_each_run_stood(typed, tmp_path, monkeypatch):
    def fail_in_jumprelu(module, block, optimizer, n_steps_before):
        if isinstance(module.sae, JumpReLU) and n_steps_before >= 8:
            raise ValueError("no JumpReLU today")
        return original(module, block, optimizer, n_steps_before)

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    _sweep(typed, monkeypatch, whole, GRID[:1])
    original = SAEModule.train_block
    monkeypatch.setattr(SAEModule, "train_block", fail_in_jumprelu)
    with pytest.raises(ValueError, match=r"got 1 that failed; the others are done(.|\n)*sae=jumprelu: ValueError: no"):
        _sweep(typed, monkeypatch, broken, GRID[:1])
    monkeypatch.setattr(SAEModule, "train_block", original)
    (failed,) = [path for path in broken.rglob("train_sae") if "jumprelu" in str(path)]
    assert torch.load(failed / "checkpoints" / "last.ckpt")["global_step"] == 8  # of 12, every second epoch
    # One of the others loses its end, as if killed after its last checkpoint.
    (other,) = [path.parent for path in broken.rglob("export") if "relu_l1" in str(path)]
    shutil.rmtree(other / "export")
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    _sweep(typed, monkeypatch, broken, GRID[:1])
    assert _files(broken) == _files(whole)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_runs_go_on_alone_from_the_checkpoints_of_a_sweep_and_a_sweep_from_theirs(typed, tmp_path, monkeypatch):
    """Stopped between the checkpoints of two runs and two others, one run ends alone, the rest in a sweep again."""
    alone, mixed = tmp_path / "alone", tmp_path / "mixed"
    combinations = config.expand_grid(GRID[:1])
    for combination in combinations:
        _execute([*typed, *combination, f"paths.runs={alone}", "task=train_sae"])

    original = MemberCheckpointIO.save_checkpoint

    def stop_in_the_middle(self, checkpoint, path, storage_options=None):
        """The first SAEs have saved their second checkpoint when all are stopped."""
        if checkpoint["epoch"] == 3 and path.endswith("last.ckpt") and path.startswith(str(self._folders[2])):
            raise KeyboardInterrupt
        original(self, checkpoint, path, storage_options)

    monkeypatch.setattr(MemberCheckpointIO, "save_checkpoint", stop_in_the_middle)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        _sweep(typed, monkeypatch, mixed, GRID[:1])
    monkeypatch.setattr(MemberCheckpointIO, "save_checkpoint", original)
    steps = [torch.load(path)["global_step"] for path in mixed.rglob("last.ckpt")]
    assert sorted(steps) == [4, 4, 8, 8]
    _execute([*typed, *combinations[0], f"paths.runs={mixed}", "task=train_sae"])
    _sweep(typed, monkeypatch, mixed, GRID[:1])
    assert _files(mixed) == _files(alone)
    for one in alone.rglob("last.ckpt"):
        other = torch.load(mixed / one.relative_to(alone))
        same = torch.load(one)
        assert other.keys() == same.keys()
        assert other["global_step"] == same["global_step"] == 12
        assert other["callbacks"].keys() == same["callbacks"].keys()
        assert other["ActivationDataModule"] == same["ActivationDataModule"]
        for name, value in same["state_dict"].items():
            assert torch.equal(value, other["state_dict"][name])


@pytest.mark.slow
def test_what_cannot_share_a_stream_is_refused(typed, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"got none: give e\.g\. sweep\.grid"):
        _sweep(typed, monkeypatch, tmp_path / "runs", [])
    refused = [f"train.{key}" for key in ("batch_size=64,128", "epochs=1,2", "total_rows=10,20")]
    for entry in (*refused, "seed=0,1", "fold=0,1"):
        named = entry.partition("=")[0]
        with pytest.raises(ValueError, match=rf"got other {named} for .*: use -m with task=train_sae"):
            _sweep(typed, monkeypatch, tmp_path / "runs", [entry])
    with pytest.raises(ValueError, match=r"Expected trainer\.devices=1"):
        _sweep(typed, monkeypatch, tmp_path / "runs", ["trainer.devices=2"])
