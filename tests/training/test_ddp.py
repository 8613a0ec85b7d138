import csv
import functools
import logging

import lightning
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from lightning.pytorch.callbacks import ModelCheckpoint

from src.callbacks.plain_progress import PlainProgress
from src.checks.devices import n_devices
from src.modules.sae import SAEModule
from src.training.ddp import SharedBatches
from src.training.metrics_csv import MetricsCsv
from tests.training.shared_batches import CASES, D_IN, N_LATENTS, N_STEPS, Failing, SharedData, build, train

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # Lightning 2.6 under torch 2.15
]


def _train_all(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save({name: train(name) for name in CASES}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_processes")
    torch.multiprocessing.spawn(_train_all, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@functools.cache
def _trained_by_one(name):
    return train(name)


def _deviation(one, other):
    one, other = one.double(), other.double()
    scale = one.abs().max().clamp_min(1e-300) if one.numel() else 1
    return float(((one - other).abs().max() / scale) if one.numel() else 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_what_one_trains(trained_by_two, name):
    state, steps = _trained_by_one(name)
    for other_state, other_steps in (results[name] for results in trained_by_two):
        for number, (mine, others) in enumerate(zip(steps, other_steps, strict=True)):
            assert torch.equal(mine[0], others[0]), f"step {number}: other latents"
            assert torch.equal(mine[2], others[2]), f"step {number}: other neurons are silent"
            assert mine[1].keys() == others[1].keys()
            for key, value in mine[1].items():
                assert _deviation(value, others[1][key]) < 1e-9, f"step {number}: {key}"
        for key, value in state.items():
            assert _deviation(value, other_state[key]) < 1e-9, key


def _trainer(folder, devices, **options):
    if devices > 1:
        options |= {"strategy": SharedBatches(), "use_distributed_sampler": False}
    return lightning.Trainer(
        accelerator="cpu",
        devices=devices,
        max_epochs=2,
        logger=MetricsCsv(folder / "metrics.csv"),
        callbacks=[
            ModelCheckpoint(folder / "checkpoints", save_last=True, monitor="val/explained_variance", mode="max"),
            PlainProgress(),
        ],
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )


def _fit(folder, devices, block_size):
    folder.mkdir()
    module = SAEModule(
        build("batch_topk, annealed k, L1"),
        lr=1e-2,
        warmup_steps=3,
        decay_fraction=0.5,
        total_steps=2 * N_STEPS,
        max_grad_norm=0.1,
    )
    trainer = _trainer(folder, devices)
    data = SharedData(block_size)
    trainer.fit(module, data)
    # As after a calibration of the threshold, which the processes of the validation must receive.
    module.sae.threshold.mul_(0.9)
    (measured,) = trainer.validate(module, data, verbose=False)
    with open(folder / "metrics.csv", newline="") as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    return module, trainer, measured, rows


@pytest.mark.slow
def test_a_trainer_with_two_devices_ends_like_one_with_one(tmp_path):
    one, trainer_of_one, measured_by_one, rows_of_one = _fit(tmp_path / "one", 1, block_size=4)
    two, trainer_of_two, measured_by_two, rows_of_two = _fit(tmp_path / "two", 2, block_size=7)
    for key, value in one.state_dict().items():
        assert _deviation(value, two.state_dict()[key]) < 1e-9, key
    assert trainer_of_two.global_step == trainer_of_one.global_step == 2 * N_STEPS
    assert measured_by_two == pytest.approx(measured_by_one, rel=1e-9)
    last = [torch.load(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("one", "two")]
    assert last[0]["global_step"] == last[1]["global_step"] == 2 * N_STEPS
    assert _deviation(last[0]["state_dict"]["sae.W_enc"], last[1]["state_dict"]["sae.W_enc"]) < 1e-9
    validations = [[row for row in rows if "val/fvu" in row] for rows in (rows_of_one, rows_of_two)]
    assert len(validations[0]) == 2
    for mine, others in zip(*validations, strict=True):
        assert {key: others[key] for key in mine if key.startswith("val/")} == pytest.approx(
            {key: value for key, value in mine.items() if key.startswith("val/")}, rel=1e-9
        )
    # Blocks differ, and so what a row is the mean of; the last rows of both are of the last batches.
    assert [row["step"] for row in rows_of_two if "train/loss" in row] == [7, 14, 20, 27, 34, 40]


@pytest.mark.slow
def test_errors_and_log_lines_of_the_processes_come_back(tmp_path, caplog):
    module = SAEModule(Failing(D_IN, N_LATENTS, k=3).double())
    with caplog.at_level(logging.INFO), pytest.raises(ValueError, match="Expected other activations"):
        _trainer(tmp_path, 2).fit(module, SharedData(4))
    assert "about to fail" in caplog.messages


@pytest.mark.slow
def test_diverging_training_of_several_processes_is_one_error(tmp_path):
    module = SAEModule(build("batch_topk"), lr=1e300, max_grad_norm=None)  # in float64
    with pytest.raises(ValueError, match=r"finite losses, got .* at optimizer step 2: training diverged"):
        _trainer(tmp_path, 2).fit(module, SharedData(4))
    assert not list(tmp_path.glob("checkpoints/*.ckpt"))


@pytest.mark.parametrize(
    ("accelerator", "devices", "expected"),
    [("cpu", 2, 2), ("cpu", "2", 2), ("cpu", "auto", 1), ("auto", [0, 3], 2), ("gpu", "0,1,5", 3), ("auto", 1, 1)],
)
def test_number_of_devices(accelerator, devices, expected):
    assert n_devices(accelerator, devices) == expected


def test_refuses_processes_that_were_started_from_outside(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    with pytest.raises(ValueError, match=r"got 4 started from outside: .*--ntasks=1"):
        SharedBatches()
