import copy
import functools

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from torch.utils.data import DataLoader

from src.models.saes.archetypal import Archetypal
from src.models.saes.batch_topk import BatchTopK
from src.models.saes.jumprelu import JumpReLU
from src.models.saes.relu_l1 import ReLUL1
from src.modules.sae import SAEModule
from src.ops.dense_latents import DenseLatents
from src.ops.sparse_latents import SparseLatents
from tests.models.saes.golden import compose_sae

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


def _loader(batches):
    return DataLoader(batches, batch_size=None)


def _assert_equal_states(one, other):
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_global_step_counts_optimizer_steps(tmp_path):
    trainer = _fit(tmp_path, SAEModule(_sae()), max_epochs=2)
    assert trainer.global_step == 2 * N_STEPS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # what torch.compile says of the code that it traces
@pytest.mark.parametrize("make", [_sae, lambda: JumpReLU(D_IN, N_LATENTS)])
def test_compiled_step_trains_the_same_weights(tmp_path, make):
    torch.manual_seed(0)
    reference = SAEModule(make(), lr=1e-2)
    # Traces and guards as any backend, but runs torch's own kernels: the numbers are the same bit for bit.
    compiled = SAEModule(copy.deepcopy(reference.sae), lr=1e-2, compile_backend="aot_eager")
    _fit(tmp_path, reference)
    torch._dynamo.utils.counters.clear()
    _fit(tmp_path, compiled)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 1
    _assert_equal_states(reference.sae, compiled.sae)


@pytest.mark.parametrize("block_size", [1, 5, 64])
def test_block_size_does_not_change_the_weights(tmp_path, block_size):
    options = {"lr": 1e-2, "warmup_steps": 5, "decay_fraction": 0.5, "total_steps": 2 * N_STEPS, "max_grad_norm": 0.1}
    reference, other = (SAEModule(_sae(k_anneal_steps=15), **options) for _ in range(2))
    _fit(tmp_path, reference, block_size=4)
    _fit(tmp_path, other, block_size=block_size)
    _assert_equal_states(reference, other)


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization")
def test_checkpoint_intervals_count_optimizer_steps(tmp_path):
    checkpoints = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)
    _fit(tmp_path, SAEModule(_sae()), max_epochs=2, callbacks=[checkpoints], enable_checkpointing=True)
    assert sorted(path.stem for path in tmp_path.glob("*.ckpt")) == [
        f"step={step}" for step in sorted(range(4, 2 * N_STEPS + 1, 4), key=str)
    ]


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


def _relu(**options):
    torch.manual_seed(0)
    return ReLUL1(D_IN, N_LATENTS, **{"l1_coefficient": 0.3, "dead_after": 2, **options})


def _archetypal():
    torch.manual_seed(0)
    sae = Archetypal(D_IN, N_LATENTS, k=3, dead_after=2, n_points=16)
    sae.set_points(_batches()[0][:16])
    return sae


_RESAMPLING = {"resample_every_epochs": 1, "resample_silent_for": 1}


@pytest.mark.parametrize(
    "build",
    [
        _relu,
        functools.partial(_relu, **_RESAMPLING),
        functools.partial(_relu, l1_coefficient=1.0, ghost_gradients=True, error_scale="input_norm"),
        _archetypal,
    ],
)
def test_resumed_runs_of_other_families_equal_uninterrupted_ones(tmp_path, build):
    training = {"lr": 3e-2, "total_steps": 6 * N_STEPS, "steps_per_epoch": N_STEPS, "warmup_steps": 3}
    training |= {"warmup_every": 7, "warmup_from_zero": True}
    whole, stopped, resumed = (SAEModule(build(), **training) for _ in range(3))
    _fit(tmp_path / "whole", whole, max_epochs=6)
    trainer = _fit(tmp_path / "stopped", stopped, max_epochs=3)
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    with torch.no_grad():
        for value in resumed.sae.state_dict().values():
            value.fill_(7)  # all comes from the checkpoint
    _fit(tmp_path / "resumed", resumed, max_epochs=6, ckpt_path=tmp_path / "stopped.ckpt")
    _assert_equal_states(whole, resumed)
    assert not torch.equal(whole.sae.W_enc, stopped.sae.W_enc)


def test_the_density_crosses_to_the_sparse_path_in_these_runs(tmp_path):
    kinds = []

    class Recorder(ReLUL1):
        def observe_(self, latents, progress):
            kinds.append(type(latents))
            super().observe_(latents, progress)

    torch.manual_seed(0)
    sae = Recorder(D_IN, N_LATENTS, l1_coefficient=0.3, dead_after=2)
    _fit(tmp_path, SAEModule(sae, lr=3e-2), max_epochs=6)
    assert kinds[0] is DenseLatents
    assert kinds[-1] is SparseLatents


def _rates(tmp_path, **options):
    rates = []

    class Recorder(SAEModule):
        def _optimize(self, batch, optimizer, n_steps_before):
            metrics = super()._optimize(batch, optimizer, n_steps_before)
            rates.append(self.optimizers().param_groups[0]["lr"])
            return metrics

    _fit(tmp_path, Recorder(_sae(), lr=0.5, **options), max_epochs=1)
    return rates


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5] * 12),
        ({"warmup_steps": 4, "warmup_from_zero": True}, [0, 0.125, 0.25, 0.375] + [0.5] * 8),
        ({"warmup_steps": 2, "warmup_every": 6}, ([0.25] + [0.5] * 5) * 2),
        ({"warmup_steps": 2, "warmup_from_zero": True, "warmup_every": 6}, ([0, 0.25] + [0.5] * 4) * 2),
        ({"decay_fraction": 1.0, "total_steps": 12}, [0.5 * (12 - step) / 12 for step in range(12)]),
    ],
)
def test_learning_rates(tmp_path, options, expected):
    assert _rates(tmp_path, **options) == pytest.approx(expected)


def test_image_blocks_are_batches(tmp_path):
    blocks = [batch[:60].view(12, 5, D_IN) for batch in _batches()[:-1]]
    validation = DataLoader(_batches(seed=3), batch_size=None)

    def trained(sae, batches):
        module = SAEModule(sae, lr=1e-2)
        _trainer(tmp_path, 1).fit(module, DataLoader(_blocks(batches, 4), batch_size=None), validation)
        return module

    rows = [block.reshape(-1, D_IN) for block in blocks]
    _assert_equal_states(trained(_sae(), blocks), trained(_sae(), rows))
    # As PatchSAE: the class token weighs more, and b_dec starts at the median block.
    options = {"b_dec_init": "geometric_median", "error_scale": "input_norm", "class_token_weight": 3.0}
    by_blocks, by_rows = trained(_relu(**options), blocks), trained(_relu(**options), rows)
    assert not torch.allclose(by_blocks.sae.b_dec, by_rows.sae.b_dec, atol=1e-3)


def test_resampling_by_epochs_happens_at_their_ends_but_the_last(tmp_path):
    seen = []

    class Recorder(ReLUL1):
        def finish_step_(self, activations, progress, optimizer):
            before = self.W_dec.detach().clone()
            super().finish_step_(activations, progress, optimizer)
            if not torch.equal(before, self.W_dec):
                seen.append(progress.step)

    torch.manual_seed(0)
    sae = Recorder(D_IN, N_LATENTS, l1_coefficient=0.3, **_RESAMPLING)
    with torch.no_grad():
        sae.b_enc[:4] = -100.0
    _fit(tmp_path, SAEModule(sae, lr=3e-2, total_steps=4 * N_STEPS, steps_per_epoch=N_STEPS), max_epochs=4)
    assert seen == [11, 23, 35]


@pytest.mark.parametrize("preset", ["batch_topk", "archetypal", "relu_l1", "gated", "jumprelu"])
def test_mixed_precision_trains_like_full_precision(tmp_path, preset):
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        sae = compose_sae(preset, D_IN, n_latents=N_LATENTS)
        trainer = _fit(tmp_path, SAEModule(sae, total_steps=4 * N_STEPS), max_epochs=4, precision=precision)
        losses.append(float(trainer.callback_metrics["train/loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize("max_grad_norm", [1.0, None])
@pytest.mark.parametrize("block_size", [1, 5])
def test_diverging_training_is_an_error_that_names_the_step(tmp_path, block_size, max_grad_norm):
    batches = _batches()
    batches[6][3, 2] = 3e38  # finite; its square is not
    module = SAEModule(_sae(), max_grad_norm=max_grad_norm)
    with pytest.raises(ValueError, match=r"got inf at optimizer step 7: .*3e\+38, in feature 2 of 8.*train\.lr"):
        _trainer(tmp_path, 1, limit_val_batches=0).fit(module, _loader(_blocks(batches, block_size)), _loader([]))


@pytest.mark.parametrize("block_size", [1, 5])
def test_learning_rate_that_is_far_too_high_is_an_error(tmp_path, block_size):
    module = SAEModule(_sae(), lr=1e30, max_grad_norm=None)
    with pytest.raises(ValueError, match="finite losses, got nan at optimizer step 2: training diverged"):
        _fit(tmp_path, module, block_size=block_size)


class _Spoilt(SAEModule):
    """Its weights are lost in the last step of the second epoch, where no loss shows it."""

    def _optimize(self, *arguments):
        metrics = super()._optimize(*arguments)
        if self.global_step == 2 * N_STEPS:
            with torch.no_grad():
                self.sae.b_dec[1] = torch.nan
        return metrics


@pytest.mark.parametrize("has_validation", [False, True])
def test_the_last_finite_checkpoint_stays(tmp_path, has_validation):
    checkpoints = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=not has_validation)
    options = {"enable_checkpointing": True, "num_sanity_val_steps": 0, "limit_val_batches": 1.0 * has_validation}
    trainer = _trainer(tmp_path, 3, callbacks=[checkpoints], **options)
    message = "squared error of nan" if has_validation else "finite weights after optimizer step 24, got .* sae.b_dec"
    with pytest.raises(ValueError, match=message):
        trainer.fit(_Spoilt(_sae()), _loader(_blocks(_batches(), 5)), _loader(_batches(seed=3)))
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == N_STEPS
    assert all(bool(value.isfinite().all()) for value in kept["state_dict"].values())


def test_does_not_resume_from_weights_that_are_not_finite(tmp_path):
    trainer = _fit(tmp_path, SAEModule(_sae()), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    spoilt = torch.load(tmp_path / "last.ckpt", weights_only=True)
    spoilt["state_dict"]["sae.W_dec"][0, 0] = torch.inf
    torch.save(spoilt, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"finite weights in the checkpoint to resume from.*overwrite=true"):
        _fit(tmp_path, SAEModule(_sae()), max_epochs=2, ckpt_path=tmp_path / "last.ckpt")
