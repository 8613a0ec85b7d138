import threading
from itertools import chain

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from src.data.feeding import activations, feeds
from src.data.feeding.activations import ActivationDataModule
from src.data.feeding.epoch_order import epoch_order
from src.data.feeding.feeds import DeviceFeed
from src.data.feeding.rows import StoreRows
from src.training.loop_state import LoopState
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
    rows = [StoreRows(store, item_ids) for item_ids in (["a", "b"], ["v"])]
    return ActivationDataModule(*rows, batch_size, block_size, seed, **kwargs)


def numbers(batches):
    return [int(row[0]) for batch in batches for row in batch]


@pytest.mark.parametrize("residency", ["auto", "ram", "mmap", "stream"])
@pytest.mark.parametrize("n_workers", [0, 2])
def test_blocks(store, residency, n_workers):
    loader = make_data(store, residency=residency, n_workers=n_workers).train_dataloader()
    for epoch in range(2):
        blocks = list(loader)
        assert [[len(batch) for batch in block] for block in blocks] == [[2, 2, 2]] * 3 + [[2, 2, 1]]
        assert all(batch.dtype == torch.float32 for block in blocks for batch in block)
        found = numbers(batch for block in blocks for batch in block)
        assert sorted(found) == list(range(N_TRAIN))
        assert found == loader.order.epoch(epoch)[:].tolist()
        assert found == epoch_order(N_TRAIN, 5, epoch).tolist()  # one window holds these few rows


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
        ActivationDataModule(StoreRows(store, []), StoreRows(store, ["v"]), 2, 2, 0)
    with pytest.raises(ValueError, match="got \\['x'\\]"):
        StoreRows(store, ["x"])
    with pytest.raises(ValueError, match=r"Expected train\.residency to be one of auto, gpu"):
        make_data(store, residency="disk")
    with pytest.raises(ValueError, match=r"Expected train\.n_workers of at least 0, got -1"):
        make_data(store, n_workers=-1)
    with pytest.raises(ValueError, match=r"images with train\.n_tokens, got images and None"):
        make_data(store, batch_unit="images")
    with pytest.raises(ValueError, match=r"multiple of train\.n_tokens=4 rows a slide, got 15"):
        make_data(store, batch_unit="images", n_tokens=4)


def test_gpu_is_refused_without_one(store, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="Expected a CUDA device"):
        make_data(store, residency="gpu").train_dataloader()


def test_residency_is_logged(store, caplog):
    with caplog.at_level("INFO"):
        make_data(store, residency="mmap").train_dataloader()
    assert "Residency of 0.00 GiB of train activations: mmap, as asked for." in caplog.text


class Rank:
    """What the data module asks of a trainer."""

    def __init__(self, global_rank, world_size):
        self.global_rank, self.world_size = global_rank, world_size
        self.strategy = self
        self.root_device = torch.device("cpu")

    def broadcast(self, choice):
        return choice


def blocks_of_rank(store, rank, n_ranks, part, **kwargs):
    data = make_data(store, batch_size=5, **kwargs)
    data.trainer = Rank(rank, n_ranks)
    loader = data.train_loader if part == "train" else data.val_dataloader()
    return [numbers([batch]) for block in loader for batch in (block if part == "train" else [block])]


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("residency", ["ram", "mmap"])
def test_processes_together_see_the_batches_of_one(store, part, residency):
    def of(rank, n_ranks, **kwargs):
        return blocks_of_rank(store, rank, n_ranks, part, residency=residency, **kwargs)

    whole = of(0, 1)
    for n_ranks in (2, 3, 4):
        of_ranks = [of(rank, n_ranks, n_workers=rank, block_size=3) for rank in range(n_ranks)]
        assert [list(chain(*pieces)) for pieces in zip(*of_ranks, strict=True)] == whole
        lengths = np.array([[len(batch) for batch in batches] for batches in of_ranks])
        assert (lengths.max(axis=0) - lengths.min(axis=0) <= 1).all()
    if part == "train":  # the last batch has 3 rows, for 4 processes
        assert lengths[:, -1].tolist() == [1, 1, 1, 0]


def test_more_processes_than_rows_are_refused(store):
    data = make_data(store)
    data.trainer = Rank(0, N_TRAIN + 1)
    with pytest.raises(ValueError, match="at least as many train rows as processes, got 23 and 24"):
        data.setup("fit")


@pytest.mark.parametrize("residency", ["ram", "mmap"])
def test_images(tmp_path, residency):
    values = {name: np.arange(n * 3 * 2).reshape(-1, 2) + start for name, n, start in (("a", 4, 0), ("b", 3, 100))}
    store = pack(tmp_path / "f", values | {"v": np.ones((6, 2))})
    data = make_data(store, block_size=2, residency=residency, batch_unit="images", n_tokens=3)
    assert data.n_items == 7
    images = [image for block in data.train_dataloader() for batch in block for image in batch]
    assert {batch.shape for block in data.train_dataloader() for batch in block} == {(2, 3, 2), (1, 3, 2)}
    expected = np.concatenate([values["a"], values["b"]]).reshape(7, 3, 2)
    order = data.train_loader.order.epoch(0)[:]
    np.testing.assert_array_equal(torch.stack(images), expected[order])
    assert [batch.shape for batch in data.val_dataloader()] == [(6, 2)]


def test_slide_entropy_of_mixed_and_of_sorted_rows(tmp_path):
    store = pack(tmp_path / "f", {f"s{i}": np.full((64, 2), i) for i in range(16)})

    def entropy(**kwargs):
        data = ActivationDataModule(StoreRows(store, store.item_ids), StoreRows(store, []), 64, 1, 0, **kwargs)
        return data.slide_entropy(1)

    assert entropy(residency="ram") == pytest.approx(1.0, abs=0.02)
    # Chunks of a slide each (CHUNK_BYTES is more), a window of one: batches of one slide.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feeds, "CHUNK_BYTES", 64 * 8)
        assert entropy(residency="mmap", window_bytes=1) == 0.0
        assert 0.3 < entropy(residency="mmap", window_bytes=4 * 64 * 8) < 0.7


def test_run_that_began_by_window_goes_on_so_in_memory(store, monkeypatch):
    monkeypatch.setattr(feeds, "CHUNK_BYTES", 16)
    whole = make_data(store, residency="mmap", window_bytes=64)
    blocks = [numbers(block) for block in whole.train_dataloader()]
    begun = make_data(store, residency="mmap", window_bytes=64)
    next(iter(begun.train_dataloader()))
    for residency, window_bytes in (("auto", 64), ("ram", 64), ("mmap", 1 << 20), ("stream", 64)):
        resumed = make_data(store, residency=residency, window_bytes=window_bytes, n_workers=1)
        resumed.load_state_dict(begun.state_dict())
        assert [numbers(block) for block in resumed.train_dataloader()] == blocks[1:]


def in_every_residency(store, monkeypatch, **kwargs):
    monkeypatch.setattr(feeds, "CHUNK_BYTES", 16)
    monkeypatch.setattr(activations, "DeviceFeed", lambda items, device: DeviceFeed(items, torch.device("cpu")))
    monkeypatch.setattr(activations, "free_gpu", lambda device: 1 << 40)
    return {name: make_data(store, residency=name, **kwargs) for name in ("gpu", "ram", "mmap", "stream")}


@pytest.mark.parametrize("window_bytes", [64, 1 << 20])
def test_where_rows_lie_changes_no_batch(store, monkeypatch, window_bytes):
    made = in_every_residency(store, monkeypatch, window_bytes=window_bytes)
    epochs = [[numbers(block) for _ in range(2) for block in data.train_dataloader()] for data in made.values()]
    assert all(epoch == epochs[0] for epoch in epochs)
    states = [data.state_dict() for data in made.values()]
    assert all(state == states[0] for state in states)
    assert states[0]["order"] == ("windows" if window_bytes == 64 else "permutation")


@pytest.mark.parametrize("window_bytes", [64, 1 << 20])
def test_run_goes_on_wherever_the_rows_lie_now(store, monkeypatch, window_bytes):
    whole = in_every_residency(store, monkeypatch, window_bytes=window_bytes)["ram"]
    blocks = [numbers(block) for block in whole.train_dataloader()]
    for begun in in_every_residency(store, monkeypatch, window_bytes=window_bytes).values():
        next(iter(begun.train_dataloader()))
        state = begun.state_dict()
        for resumed in in_every_residency(store, monkeypatch, window_bytes=window_bytes).values():
            resumed.load_state_dict(state)
            assert [numbers(block) for block in resumed.train_dataloader()] == blocks[1:]


def test_free_memory_does_not_change_the_order(store, monkeypatch):
    monkeypatch.setattr(feeds, "CHUNK_BYTES", 16)
    found = []
    for free in (1 << 40, 1, None):
        monkeypatch.setattr(activations, "free_ram", lambda _, free=free: free)
        data = make_data(store, residency="auto", window_bytes=64)
        found.append((type(data._feed).__name__, [numbers(block) for block in data.train_dataloader()]))
    assert [name for name, _ in found] == ["RamFeed", "WindowFeed", "WindowFeed"]
    assert found[0][1] == found[1][1] == found[2][1]


def test_run_that_began_with_one_permutation_of_many_rows_goes_on_in_memory_only(store, monkeypatch):
    """Earlier versions drew one permutation, however many rows there were, when they were held in memory."""
    monkeypatch.setattr(feeds, "CHUNK_BYTES", 16)
    state = make_data(store, residency="ram", window_bytes=1 << 20).state_dict() | {"consumed": 6}
    resumed = make_data(store, residency="ram", window_bytes=64)
    resumed.load_state_dict(state)
    assert (
        list(chain(*(numbers(block) for block in resumed.train_dataloader())))
        == epoch_order(N_TRAIN, 5, 0)[6:].tolist()
    )
    with pytest.raises(ValueError, match=r"made with order=windows, got permutation: .* overwrite=true"):
        make_data(store, residency="mmap", window_bytes=64).load_state_dict(state)


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


def fit(store, path, checkpoint=None, fail_at=None, resume=None, max_epochs=3, data=None, **trainer_arguments):
    module, data = Recorder(fail_at), make_data(store, **(data or {}))
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        logger=False,
        callbacks=[LoopState(), *([checkpoint] if checkpoint else [])],
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


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
@pytest.mark.parametrize("block_size", [1, 2, 7, 100])
@pytest.mark.parametrize("save", ["every block", "after validation in the middle of the epoch"])
@pytest.mark.parametrize("fail_at", [1, 3, 6, 11])
def test_resumed_with_other_blocks_and_workers_sees_the_rest(store, tmp_path, block_size, save, fail_at):
    checkpoint = ModelCheckpoint(tmp_path / "ckpt", filename="last", enable_version_counter=False, **SAVES[save][0])
    whole, _ = fit(store, tmp_path)
    fit(store, tmp_path, checkpoint, fail_at=fail_at, **SAVES[save][1])
    path = tmp_path / "ckpt" / "last.ckpt"
    if not path.exists():
        assert (fail_at, save) == (1, "after validation in the middle of the epoch")
        return
    n_done = torch.load(path, weights_only=True)["global_step"]
    resumed, trainer = fit(store, tmp_path, resume=path, data={"block_size": block_size, "n_workers": 2})
    assert resumed.seen == whole.seen[n_done:]
    assert resumed.epochs == whole.epochs[n_done:]
    assert (trainer.global_step, trainer.current_epoch) == (36, 3)
    # One validation at the end of each epoch that is left.
    n_epochs = 3 - n_done // 12
    assert list(chain(*resumed.validations)) == list(range(100, 107)) * n_epochs
    torch.testing.assert_close(resumed.weight, whole.weight, rtol=0, atol=0)


@pytest.mark.parametrize("block_size", [1, 5])
@pytest.mark.parametrize("fail_at", [2, 3, 5])
def test_block_that_failed_comes_again_in_other_blocks(store, tmp_path, block_size, fail_at):
    whole, _ = fit(store, tmp_path)
    fit(store, tmp_path, SaveOnException(tmp_path / "failed.ckpt"), fail_at=fail_at)
    resumed, trainer = fit(store, tmp_path, resume=tmp_path / "failed.ckpt", data={"block_size": block_size})
    assert resumed.seen == whole.seen[3 * fail_at :]
    assert trainer.global_step == 36


def test_no_thread_survives_a_run(store, tmp_path):
    fit(store, tmp_path, data={"n_workers": 2, "residency": "mmap"})
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_checkpoint_of_other_rows_is_refused(store, tmp_path):
    data = make_data(store)
    with pytest.raises(ValueError, match="Expected a checkpoint made with batch_size=2, got 3"):
        data.load_state_dict(make_data(store, batch_size=3).state_dict())
    other = pack(tmp_path / "g", {"a": np.zeros((15, 2)), "b": np.zeros((8, 2)), "v": np.zeros((7, 2))})
    with pytest.raises(ValueError, match=r"Expected a checkpoint made with data=.*overwrite=true"):
        data.load_state_dict(make_data(other).state_dict())
