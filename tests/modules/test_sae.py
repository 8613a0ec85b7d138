import copy

import lightning
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch.utils.data import DataLoader

from src.models.saes.batch_topk import BatchTopK
from src.modules.sae import SAEModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # Lightning 2.6 under torch 2.15
]

D_IN, N_LATENTS, N_STEPS = 8, 32, 12


def _batches(n_batches=N_STEPS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(64, D_IN, generator=generator) for _ in range(n_batches - 1)]
    return [*batches, torch.randn(23, D_IN, generator=generator)]


def _blocks(batches, block_size):
    return [batches[start : start + block_size] for start in range(0, len(batches), block_size)]


def _sae(**options):
    torch.manual_seed(0)
    return BatchTopK(D_IN, N_LATENTS, k=3, dead_after=2, **options)


def _trainer(folder, max_epochs, **options):
    return lightning.Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        enable_checkpointing=options.pop("enable_checkpointing", False),
        **options,
    )


def _fit(folder, module, block_size=4, max_epochs=2, ckpt_path=None, **options):
    trainer = _trainer(folder, max_epochs, **options)
    blocks = _blocks(_batches(), block_size)
    loaders = DataLoader(blocks, batch_size=None), DataLoader(_batches(seed=3), batch_size=None)
    trainer.fit(module, *loaders, ckpt_path=ckpt_path)
    return trainer


def _assert_equal_states(one, other):
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_global_step_counts_optimizer_steps(tmp_path):
    trainer = _fit(tmp_path, SAEModule(_sae()), max_epochs=2)
    assert trainer.global_step == 2 * N_STEPS


@pytest.mark.parametrize("block_size", [1, 5, 100])
def test_block_size_does_not_change_the_weights(tmp_path, block_size):
    options = {"lr": 1e-2, "warmup_steps": 5, "decay_fraction": 0.5, "total_steps": 2 * N_STEPS, "max_grad_norm": 0.1}
    reference, other = SAEModule(_sae(), **options), SAEModule(_sae(), **options)
    _fit(tmp_path, reference, block_size=4)
    _fit(tmp_path, other, block_size=block_size)
    _assert_equal_states(reference, other)


@pytest.mark.parametrize("options", [{}, {"decoder_constraint": "before_step"}, {"input_norm": "z_score"}])
def test_resumed_run_equals_uninterrupted_one(tmp_path, options):
    training = {"lr": 1e-2, "warmup_steps": 20, "decay_fraction": 0.5, "total_steps": 4 * N_STEPS}
    whole = SAEModule(_sae(**options), **training)
    _fit(tmp_path / "whole", whole, max_epochs=4)

    stopped = SAEModule(_sae(**options), **training)
    trainer = _fit(tmp_path / "stopped", stopped, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    torch.manual_seed(1)
    resumed = SAEModule(BatchTopK(D_IN, N_LATENTS, k=3, dead_after=2, **options), **training)
    _fit(tmp_path / "resumed", resumed, max_epochs=4, ckpt_path=tmp_path / "stopped.ckpt")
    _assert_equal_states(whole, resumed)
    assert not torch.equal(whole.sae.W_dec, stopped.sae.W_dec)


def test_equal_runs_are_equal_bit_for_bit(tmp_path):
    one, other = SAEModule(_sae()), SAEModule(_sae())
    _fit(tmp_path, one)
    _fit(tmp_path, other)
    _assert_equal_states(one, other)


def test_matches_a_hand_written_loop(tmp_path):
    module = SAEModule(_sae(), lr=1e-2, max_grad_norm=0.05)
    sae = copy.deepcopy(module.sae)
    _fit(tmp_path, module, max_epochs=1)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-2, betas=(0.9, 0.99), fused=True)
    sae.initialize_from_(_batches()[0])
    for batch in _batches():
        sae.step(batch).loss.backward()
        sae.constrain_gradient_()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 0.05)
        optimizer.step()
        optimizer.zero_grad()
        sae.constrain_after_step_()
    _assert_equal_states(module.sae, sae)


def _validated(tmp_path, sae):
    module = SAEModule(sae)
    trainer = _trainer(tmp_path, 1)
    batches = _batches(seed=3)
    trainer.validate(module, DataLoader(batches, batch_size=None), verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}, torch.cat(batches)


@pytest.mark.parametrize("unit_norm", [False, True])
def test_validation_metrics_are_those_of_the_whole_set(tmp_path, unit_norm):
    sae = _sae(input_norm="z_score" if unit_norm else "none")
    sae.threshold.fill_(0.7)
    metrics, activations = _validated(tmp_path, sae)
    latents = sae.encode(activations).to_dense()
    with torch.no_grad():
        error = (activations - sae.reconstruct(activations)).square().sum()
    fvu = float(error / (activations - activations.mean(0)).square().sum())
    assert metrics["val/fvu"] == pytest.approx(fvu, rel=1e-5)
    assert metrics["val/explained_variance"] == pytest.approx(1 - fvu, rel=1e-5)
    assert metrics["val/l0"] == pytest.approx(float((latents > 0).sum(1).double().mean()))
    assert metrics["val/dead_fraction"] == pytest.approx(float((latents.max(0).values == 0).double().mean()))


def test_validation_moves_state_only_where_asked(tmp_path):
    default, observing = _sae(), _sae(observe_validation=True)
    for sae in (default, observing):
        sae.threshold.fill_(0.7)
        sae.silent_for.fill_(3)
    before = copy.deepcopy(default.state_dict())
    _validated(tmp_path, default)
    _validated(tmp_path, observing)
    assert all(torch.equal(value, before[name]) for name, value in default.state_dict().items())
    assert float(observing.threshold) != float(before["threshold"])
    assert not torch.equal(observing.silent_for, before["silent_for"])


def test_training_logs_block_means_under_the_optimizer_step(tmp_path):
    rows = []

    class Recorder(DummyLogger):
        def log_metrics(self, metrics, step=None):
            rows.append((step, metrics))

    trainer = _trainer(tmp_path, 1, log_every_n_steps=1)
    trainer.loggers = [Recorder()]
    trainer.fit(
        SAEModule(_sae()), DataLoader(_blocks(_batches(), 4), batch_size=None), DataLoader(_batches(), batch_size=None)
    )
    training = [(step, metrics) for step, metrics in rows if "train/loss" in metrics]
    assert [step for step, _ in training] == [4, 8, 12]
    assert all(metrics["train/l0"] == pytest.approx(3) for _, metrics in training)
    assert training[-1][1]["train/loss"] < training[0][1]["train/loss"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lr": 0.0}, "positive train.lr"), ({"decay_fraction": 0.2}, "total_steps with it, got 0.2 and None")],
)
def test_refuses_options_that_cannot_train(options, message):
    with pytest.raises(ValueError, match=message):
        SAEModule(_sae(), **options)
