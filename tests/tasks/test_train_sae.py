"""train_sae on a small folder, through the runner: checkpoints, and training that diverges."""

import types

import h5py
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from src import config
from src.modules.sae import SAEModule
from src.runs.execution import execute, open_rundir
from src.stores.sae import load_sae
from src.tasks import train_sae
from src.training.checkpoints import newest_checkpoint
from tests.modules.test_sae import N_STEPS, _batches, _blocks, _loader, _sae, _trainer
from tests.synthetic import make_feature_folder

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # Lightning 2.6 under torch 2.15
]
config.register_resolvers()


@pytest.mark.parametrize("has_validation", [False, True])
def test_the_last_state_is_kept_also_when_it_is_not_the_best(tmp_path, has_validation):
    rundir = types.SimpleNamespace(checkpoints_dir=tmp_path)
    fold = types.SimpleNamespace(split=types.SimpleNamespace(val=("a",) * has_validation))
    callbacks = train_sae.best_and_last(ModelCheckpoint, rundir, fold, {"check_val_every_n_epoch": 1})
    options = {"enable_checkpointing": True, "num_sanity_val_steps": 0, "limit_val_batches": 1.0 * has_validation}
    steps = []

    class Reader(SAEModule):
        def on_train_epoch_start(self):
            path = tmp_path / "last.ckpt"
            steps.append(torch.load(path, weights_only=True)["global_step"] if path.is_file() else 0)

        def on_validation_start(self):
            with torch.no_grad():
                self.sae.b_dec.add_(10.0)  # each validation is worse than the one before

    trainer = _trainer(tmp_path, 3, callbacks=callbacks, **options)
    trainer.fit(Reader(_sae()), _loader(_blocks(_batches(), 5)), _loader(_batches(seed=3)))
    assert steps == [0, N_STEPS, 2 * N_STEPS]
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["best.ckpt"] * has_validation + ["last.ckpt"]


@pytest.fixture
def start(tmp_path):
    make_feature_folder(tmp_path / "features")
    always = [
        "exp=features",
        f"dataset.dir={tmp_path / 'features'}",
        "name=small",
        f"paths.data={tmp_path / 'data'}",
        f"paths.runs={tmp_path / 'runs'}",
        f"paths.cache={tmp_path / 'cache'}",
        *("sae.k=4", "train.batch_size=256", "train.epochs=20", "dataset.positive_class=tumor", "trainer=cpu"),
    ]

    def start(task, *overrides):
        typed = [*always, *overrides, f"task={task}"]
        composed = config.compose(typed)
        rundir = open_rundir(config.resolve(composed), typed)
        return rundir, lambda: execute(composed, typed)

    start("splits")[1]()
    return start


@pytest.mark.slow
def test_a_diverged_run_fails_and_does_not_resume_into_nan(start):
    rundir, run = start("train_sae", "train.lr=1e30", "train.max_grad_norm=null")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"at optimizer step 2: training diverged.*Try a lower train\.lr"):
            run()
        assert rundir.read_manifest()["status"] == "failed"
        assert not rundir.export_dir.exists()
        assert not list(rundir.checkpoints_dir.glob("*.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("standardize", [False, True])
def test_features_that_call_for_standardising_are_warned_of(start, tmp_path, caplog, standardize):
    for path in (tmp_path / "features" / "h5_files").glob("*.h5"):
        with h5py.File(path, "a") as file:
            features = file["features"][:]
            features[:, 0] *= 1e4
            file["features"][...] = features
    rundir, run = start("train_sae", f"dataset.standardize={str(standardize).lower()}")
    run()
    hint = "The widest feature's deviation is"
    assert (hint in caplog.text) is not standardize
    assert (hint in rundir.page_path.read_text()) is not standardize


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_checkpoints_by_step_are_exported_and_go_on_to_the_same_end(start, monkeypatch):
    """One of five stands inside an epoch; the run that was killed after it ends with the weights of a whole one."""
    settings = ("train.epochs=4", "train.n_validations=2", "train.checkpoints=5", "train.calibrate_threshold=false")
    settings += ("train.batch_size=64",)
    rundir, run = start("train_sae", *settings)
    n_steps = run()["n_steps"]
    expected = [round(n_steps * i / 5) for i in range(1, 6)]
    names = [f"step_{step}" for step in expected]
    assert sorted(path.stem for path in rundir.checkpoints_dir.glob("step_*")) == sorted(names)
    for name in names:
        state = torch.load(rundir.checkpoints_dir / f"{name}.ckpt")["state_dict"]
        sae = load_sae(rundir.export_dir / name)
        assert all(torch.equal(state[f"sae.{key}"], value) for key, value in sae.state_dict().items())
    assert not torch.equal(load_sae(rundir.export_dir / names[0]).W_dec, load_sae(rundir.export_dir).W_dec)
    assert torch.equal(load_sae(rundir.export_dir / names[-1]).W_dec, load_sae(rundir.export_dir).W_dec)
    weights = (rundir.export_dir / "sae_weights.safetensors").read_bytes()
    metrics = rundir.metrics_path.read_text()

    original = SAEModule.train_block

    def killed(self, block, optimizer, n_steps_before):
        if n_steps_before >= expected[2] and n_steps_before % (n_steps // 4):
            raise KeyboardInterrupt
        return original(self, block, optimizer, n_steps_before)

    monkeypatch.setattr(SAEModule, "train_block", killed)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        start("train_sae", *settings, "overwrite=true")[1]()
    monkeypatch.setattr(SAEModule, "train_block", original)
    assert newest_checkpoint(rundir.checkpoints_dir).path.stem == names[2]
    run()
    assert (rundir.export_dir / "sae_weights.safetensors").read_bytes() == weights
    assert rundir.metrics_path.read_text() == metrics


@pytest.mark.slow
@pytest.mark.parametrize("total_rows", [100, 700, 2000])
def test_training_ends_after_as_many_rows_as_asked_for(start, monkeypatch, total_rows):
    seen = []
    original = SAEModule.train_block

    def counting(self, block, optimizer, n_steps_before):
        seen.extend(len(batch) for batch in block)
        return original(self, block, optimizer, n_steps_before)

    monkeypatch.setattr(SAEModule, "train_block", counting)
    rundir, run = start("train_sae", f"train.total_rows={total_rows}", "train.batch_size=64", "train.block_size=3")
    results = run()
    assert sum(seen) == total_rows
    assert len(seen) == results["n_steps"] == torch.load(rundir.checkpoints_dir / "last.ckpt")["global_step"]
