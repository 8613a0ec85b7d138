from itertools import chain

import lightning as L
import numpy as np
import pytest
import torch

from src.data.feeding.bags import BagDataModule, CachedBags, activation_bags, collate_bags, latent_bags
from src.data.feeding.standardize import fit_standardizer
from src.ops.sparse_latents import SparseLatents
from src.split_files import FoldSplit
from tests.data.stores import pack
from tests.latents import write_latents

SIZES = {"a": 3, "b": 1, "c": 5, "d": 2}
LABELS = {"a": 0, "b": 1, "c": 0, "d": 1}


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    return pack(tmp_path / "f", {name: rng.normal(2, 3, size=(n, 4)) for name, n in SIZES.items()})


def test_activation_bags(store):
    bag = activation_bags(store)("c")
    np.testing.assert_array_equal(bag.numpy(), store.rows("c"))
    bag.zero_()
    assert np.all(store.rows("c") != 0)
    standardizer = fit_standardizer(store, ["a", "c"])
    standardized = activation_bags(store, standardizer)("a")
    assert standardized.dtype == torch.float32
    expected = (store.rows("a") - standardizer.mean) / standardizer.scale
    np.testing.assert_array_equal(standardized.numpy(), expected)


def test_latent_bags(tmp_path):
    latents = torch.relu(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)))
    store = write_latents(tmp_path, {"c": latents})
    torch.testing.assert_close(latent_bags(store)("c"), latents, rtol=0, atol=0)
    torch.testing.assert_close(latent_bags(store, [4, 0])("c"), latents[:, [4, 0]], rtol=0, atol=0)


def test_collate(store):
    bags = [activation_bags(store)(item_id) for item_id in SIZES]
    batch = collate_bags(list(SIZES), bags, list(LABELS.values()))
    assert batch.item_ids == list(SIZES)
    assert batch.bags.shape == (4, 5, 4)
    assert batch.mask.sum(dim=1).tolist() == list(SIZES.values())
    assert batch.labels.tolist() == [0, 1, 0, 1]
    for i, bag in enumerate(bags):
        torch.testing.assert_close(batch.bags[i][batch.mask[i]], bag, rtol=0, atol=0)
        assert not batch.bags[i][~batch.mask[i]].any()


def test_cache_holds_what_fits():
    read = []

    def reader(item_id):
        read.append(item_id)
        return torch.zeros(4, 4)

    cached = CachedBags(reader, ram_bytes=100)  # one bag has 64 bytes
    for item_id in "abab":
        assert cached(item_id).shape == (4, 4)
    assert read == ["a", "b", "b"]


def test_bags_are_kept_on_the_device_that_trains_first():
    cached = CachedBags(lambda _: torch.zeros(4, 4), ram_bytes=100)  # one bag has 64 bytes
    cached.keep_on(torch.device("meta"), 64)
    assert [cached(item_id).device.type for item_id in "abcab"] == ["meta", "cpu", "cpu", "meta", "cpu"]


@pytest.mark.parametrize(("n_latents", "is_sparse"), [(300, True), (20, False)])
def test_sparse_bags_stay_sparse_when_nearly_all_is_zero(n_latents, is_sparse):
    dense = [torch.zeros(n, n_latents) for n in (2, 3)]
    for bag in dense:
        bag[:, 7] = 1.0
    batch = collate_bags(["a", "b"], [SparseLatents.from_dense(bag) for bag in dense], [0, 1])
    assert batch.mask.sum(1).tolist() == [2, 3]
    if is_sparse:
        assert torch.equal(batch.bags.to_dense(), torch.cat(dense))
    else:
        assert torch.equal(batch.bags[batch.mask], torch.cat(dense))


def test_slide_without_label(store):
    with pytest.raises(ValueError, match=r"label for every slide, got none for \['b'\]"):
        BagDataModule(activation_bags(store), FoldSplit(0, ("a",), (), ("b",)), {"a": 0}, seed=0)


def make_data(store, batch_size=1):
    split = FoldSplit(0, train=("a", "b", "c"), val=(), test=("d",))
    return BagDataModule(activation_bags(store), split, LABELS, seed=3, batch_size=batch_size)


def test_datamodule(store):
    data = make_data(store)
    epochs = [tuple(batch.item_ids[0] for batch in data.train_dataloader()) for _ in range(8)]
    assert all(sorted(epoch) == ["a", "b", "c"] for epoch in epochs)
    assert len(set(epochs)) > 1
    again = make_data(store)
    assert [tuple(batch.item_ids[0] for batch in again.train_dataloader()) for _ in range(8)] == epochs
    assert data.val_dataloader() == []
    assert [batch.item_ids for batch in data.test_dataloader()] == [["d"]]
    assert [len(batch.item_ids) for batch in make_data(store, batch_size=2).train_dataloader()] == [2, 1]
    with pytest.raises(ValueError, match="Expected train slides in fold 2"):
        BagDataModule(activation_bags(store), FoldSplit(2, (), ("a",), ("b",)), LABELS, seed=0)


class MaxPool(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 2)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.item_ids)
        pooled = batch.bags.masked_fill(~batch.mask.unsqueeze(-1), -torch.inf).amax(dim=1)
        return torch.nn.functional.cross_entropy(self.linear(pooled), batch.labels)

    def validation_step(self, batch, batch_idx):
        raise AssertionError("the fold has no validation slides")

    def test_step(self, batch, batch_idx):
        self.seen.append(batch.item_ids)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning")
def test_trains_and_tests_under_lightning(store, tmp_path):
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    module, data = MaxPool(), make_data(store, batch_size=2)
    trainer.fit(module, data)
    assert sorted(chain(*module.seen)) == ["a", "a", "b", "b", "c", "c"]
    module.seen.clear()
    trainer.test(module, data, verbose=False)
    assert module.seen == [["d"]]
