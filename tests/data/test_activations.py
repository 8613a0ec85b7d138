from itertools import chain

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from src.data.activations import ActivationDataModule
from src.data.epoch_loader import epoch_order
from tests.data.stores import pack

pytestmark = [
    # Lightning 2.6 asks torch's pytree in a way that torch 2.15 warns of.
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
    # Resuming into the folder that holds the checkpoint is what is tested.
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
    # The state after the optimizer's step is the one to resume from.
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization:UserWarning"),
]

N_TRAIN, N_VAL = 23, 7


@pytest.fixture
def store(tmp_path):
    """Rows whose first value is their number: train slides a and b hold 0 to 22, v holds 100 to 106."""
    numbers = {"a": np.arange(15), "b": np.arange(15, N_TRAIN), "v": np.arange(100, 100 + N_VAL)}
    return pack(tmp_path / "f", {name: np.stack([rows, -rows], axis=1) for name, rows in numbers.items()})


def make_data(store, batch_size=2, block_size=3, seed=5, **kwargs):
    return ActivationDataModule(store, ["a", "b"], ["v"], batch_size, block_size, seed, **kwargs)


def numbers(batches):
    return [int(row[0]) for batch in batches for row in batch]


@pytest.mark.parametrize("ram_bytes", [0, 1 << 30])
def test_blocks(store, ram_bytes):
    loader = make_data(store, ram_bytes=ram_bytes).train_dataloader()
    for epoch in range(2):
        blocks = list(loader)
        assert [[len(batch) for batch in block] for block in blocks] == [[2, 2, 2]] * 3 + [[2, 2, 1]]
        assert all(batch.dtype == torch.float32 for block in blocks for batch in block)
        assert numbers(batch for block in blocks for batch in block) == epoch_order(N_TRAIN, 5, epoch).tolist()


def test_block_size_does_not_change_the_batches(store):
    streams = []
    for block_size in (1, 2, 100):
        loader = make_data(store, block_size=block_size).train_dataloader()
        streams.append([numbers([batch]) for _ in range(2) for block in loader for batch in block])
    assert streams[0] == streams[1] == streams[2]


def test_validation_batches_are_in_order(store):
    loader = make_data(store).val_dataloader()
    for _ in range(2):
        assert [numbers([batch]) for batch in loader] == [[100, 101], [102, 103], [104, 105], [106]]


def test_bad_arguments(store):
    with pytest.raises(ValueError, match="batch_size and block_size of at least 1, got 2 and 0"):
        make_data(store, block_size=0)
    with pytest.raises(ValueError, match="Expected train slides"):
        ActivationDataModule(store, [], ["v"], 2, 2, 0)
    with pytest.raises(ValueError, match="got \\['x'\\]"):
        ActivationDataModule(store, ["x"], ["v"], 2, 2, 0)


class Recorder(L.LightningModule):
    """Notes the rows of every optimizer step, and the epoch Lightning believes in; fails before step `fail_at`."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.seen, self.epochs, self.validations, self.fail_at, self.n_blocks = [], [], [], fail_at, 0

    def training_step(self, block, batch_idx):
        if self.n_blocks == self.fail_at:
            raise RuntimeError("killed")
        self.n_blocks += 1
        optimizer = self.optimizers()
        for batch in block:
            optimizer.zero_grad()
            self.manual_backward((batch @ self.weight).sum() * 1e-3)
            optimizer.step()
            self.seen.append(numbers([batch]))
            self.epochs.append(self.current_epoch)

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking:
            self.validations.append(numbers([batch]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveOnException(L.Callback):
    def __init__(self, path):
        self.path = path

    def on_exception(self, trainer, pl_module, exception):
        trainer.save_checkpoint(self.path)


def fit(store, path, checkpoint=None, fail_at=None, resume=None, max_epochs=3, **trainer_arguments):
    module, data = Recorder(fail_at), make_data(store)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        logger=False,
        callbacks=[checkpoint] if checkpoint else [],
        enable_checkpointing=isinstance(checkpoint, ModelCheckpoint),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=path,
        num_sanity_val_steps=0,
        **trainer_arguments,
    )
    try:
        trainer.fit(module, data, ckpt_path=resume)
    except RuntimeError as error:
        if "killed" not in str(error):
            raise
    return module, trainer


# An epoch has 4 blocks of 3 steps; 3 epochs are 12 blocks and 36 steps. How checkpoints are made, and what the trainer
# must do for them to be made.
SAVES = {
    "every block": ({"every_n_train_steps": 3}, {}),
    "every block, no validation": ({"every_n_train_steps": 3}, {"limit_val_batches": 0}),
    "end of the epoch": ({"every_n_epochs": 1, "save_on_train_epoch_end": True}, {}),
    "end of the epoch, no validation": ({"every_n_epochs": 1}, {"limit_val_batches": 0}),
    "after validation": ({"every_n_epochs": 1, "save_on_train_epoch_end": False}, {}),
    "after validation in the middle of the epoch": ({"every_n_epochs": 1}, {"val_check_interval": 2}),
}


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("fail_at", [1, 4, 7, 11])
def test_interrupted_and_resumed_sees_what_the_uninterrupted_run_sees(store, tmp_path, save, fail_at):
    checkpoint_arguments, arguments = SAVES[save]

    def checkpoint(folder):
        return ModelCheckpoint(
            folder, filename="last", enable_version_counter=False, save_top_k=1, **checkpoint_arguments
        )

    whole, whole_trainer = fit(store, tmp_path, **arguments)
    assert sorted(chain(*whole.seen)) == sorted(list(range(N_TRAIN)) * 3)
    fit(store, tmp_path, checkpoint(tmp_path / "ckpt"), fail_at=fail_at, **arguments)
    path = tmp_path / "ckpt" / "last.ckpt"
    if fail_at == 1 and not save.startswith("every block"):
        assert not path.exists()
        return
    n_done = torch.load(path, weights_only=True)["global_step"]
    assert 0 < n_done < 36
    resumed, trainer = fit(store, tmp_path, checkpoint(tmp_path / "ckpt"), resume=path, **arguments)
    assert resumed.seen == whole.seen[n_done:]
    assert resumed.epochs == whole.epochs[n_done:]
    assert trainer.global_step == whole_trainer.global_step == 36
    assert trainer.current_epoch == 3
    torch.testing.assert_close(resumed.weight, whole.weight, rtol=0, atol=0)


@pytest.mark.parametrize("fail_at", [0, 2, 3, 4])
def test_block_that_failed_is_trained_on_after_a_resume_from_the_exception(store, tmp_path, fail_at):
    whole, _ = fit(store, tmp_path)
    fit(store, tmp_path, SaveOnException(tmp_path / "failed.ckpt"), fail_at=fail_at)
    resumed, trainer = fit(store, tmp_path, resume=tmp_path / "failed.ckpt")
    assert resumed.seen == whole.seen[3 * fail_at :]
    assert trainer.global_step == 36


def test_finished_run_resumes_to_nothing_and_more_epochs_go_on(store, tmp_path):
    def checkpoint():
        return ModelCheckpoint(tmp_path / "ckpt", filename="last", enable_version_counter=False)

    path = tmp_path / "ckpt" / "last.ckpt"
    fit(store, tmp_path, checkpoint(), max_epochs=2)
    resumed, _ = fit(store, tmp_path, checkpoint(), resume=path, max_epochs=2)
    assert resumed.seen == []
    whole, _ = fit(store, tmp_path, max_epochs=3)
    more, _ = fit(store, tmp_path, checkpoint(), resume=path, max_epochs=3)
    assert more.seen == whole.seen[24:]


def test_checkpoint_of_other_rows_is_refused(store, tmp_path):
    data = make_data(store)
    with pytest.raises(ValueError, match="Expected a checkpoint made with group_size=6, got 4"):
        data.load_state_dict(make_data(store, block_size=2).state_dict())
