import lightning
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping

from src.data.feeding.bags import BagBatch, BagDataModule
from src.models.mil.attention import AttentionMIL
from src.models.mil.max_pool import MaxMIL
from src.modules.mil import MILModule
from src.split_files import FoldSplit
from src.training.mil_fit import LastCheckpoint

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning 2.6 under torch 2.15


def planted_bags(n_slides=60, seed=0):
    """Bags of 3 to 12 patches; in those of class 1 one patch points elsewhere, at a place that is told."""
    rng = np.random.default_rng(seed)
    bags, labels, places = {}, {}, {}
    for index in range(n_slides):
        bag = rng.normal(size=(rng.integers(3, 13), 8)).astype(np.float32)
        labels[str(index)] = index % 2
        if index % 2:
            places[str(index)] = int(rng.integers(len(bag)))
            bag[places[str(index)], 0] += 6
        bags[str(index)] = torch.from_numpy(bag)
    return bags, labels, places


def fit(folder, model, batch_size=1, max_epochs=15, lr=1e-3):
    bags, labels, places = planted_bags()
    ids = tuple(bags)
    split = FoldSplit(0, ids[:30], ids[30:44], ids[44:])
    data = BagDataModule(bags.__getitem__, split, labels, seed=0, batch_size=batch_size)
    module = MILModule(model, lr=lr, name="here")
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[EarlyStopping("val/here_loss", patience=5)],
        default_root_dir=folder,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    trainer.fit(module, data)
    loss = trainer.callback_metrics["val/here_loss"].item()
    batches = trainer.predict(module, data.test_dataloader())
    return module, loss, bags, labels, places, [one for batch in batches for one in batch]


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("pool", [MaxMIL, AttentionMIL])
@pytest.mark.slow
def test_planted_patch_is_learned_and_found(tmp_path, pool, batch_size):
    torch.manual_seed(0)
    _, _, bags, labels, places, predictions = fit(tmp_path, pool(8, 2), batch_size)
    assert [one.item_id for one in predictions] == [str(index) for index in range(44, 60)]
    right = [one.probabilities.argmax().item() == labels[one.item_id] for one in predictions]
    assert np.mean(right) >= 0.9
    if pool is AttentionMIL:
        assert [one.attention.shape for one in predictions] == [(len(bags[one.item_id]), 1) for one in predictions]
        found = [one.attention.argmax().item() == places[one.item_id] for one in predictions if one.item_id in places]
        assert np.mean(found) >= 0.9
    else:
        assert all(one.attention is None for one in predictions)


def test_a_resumed_training_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    """Dropout, shuffling, Adam's moments and the schedule go on as if nothing had happened."""
    bags, labels, _ = planted_bags(24)
    split = FoldSplit(0, tuple(bags)[:16], tuple(bags)[16:], ())

    def trained(n_epochs, start=None):
        torch.manual_seed(0)
        data = BagDataModule(bags.__getitem__, split, labels, seed=0, batch_size=3)
        module = MILModule(AttentionMIL(8, 2, n_hidden=16), lr=1e-2, cosine_to=1e-4, name="here")
        if start is not None:
            torch.manual_seed(1)
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=4,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            callbacks=[StopAfter(n_epochs), LastCheckpoint(tmp_path / "last.ckpt", every=0)],
            default_root_dir=tmp_path,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
        )
        trainer.fit(module, data, ckpt_path=start)
        return module.model.state_dict()

    whole = trained(4)
    trained(2)
    resumed = trained(4, tmp_path / "last.ckpt")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


class StopAfter(lightning.Callback):
    def __init__(self, n_epochs):
        self.n_epochs = n_epochs

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch + 1 >= self.n_epochs


def test_classes_weigh_in_the_loss_and_not_in_the_share_of_a_batch():
    bags, labels = torch.randn(2, 3, 8), torch.tensor([0, 1])
    batch = BagBatch(["a", "b"], bags, torch.ones(2, 3, dtype=torch.bool), labels, [3, 3])
    model = MaxMIL(8, 2, dropout=0)
    losses = F.cross_entropy(model(*batch[1:3]).logits, labels, reduction="none")
    module = MILModule(model, class_weights=torch.tensor([0.5, 3.0]))
    torch.testing.assert_close(module.training_step(batch, 0), (0.5 * losses[0] + 3 * losses[1]) / 2)


def test_validation_loss_is_the_mean_over_slides(tmp_path):
    torch.manual_seed(0)
    module, loss, bags, labels, _, _ = fit(tmp_path, AttentionMIL(8, 2), batch_size=4, max_epochs=1)
    module.eval()
    ids = [str(index) for index in range(30, 44)]
    with torch.no_grad():
        outputs = [module.model(bags[i][None], torch.ones(1, len(bags[i]), dtype=torch.bool)).logits for i in ids]
    expected = F.cross_entropy(torch.cat(outputs), torch.tensor([labels[i] for i in ids]))
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_diverging_training_is_an_error_that_names_method_and_step(tmp_path):
    with pytest.raises(ValueError, match=r"finite losses of here, got nan in epoch 1 at step 2: .*mil\.lr"):
        fit(tmp_path, MaxMIL(8, 2), lr=1e30)


def test_weights_that_are_not_finite_are_not_saved():
    module = MILModule(MaxMIL(8, 2), name="here")
    module.on_save_checkpoint({"state_dict": module.state_dict()})
    with torch.no_grad():
        module.model.classifier.bias[0] = torch.inf
    with pytest.raises(ValueError, match=r"finite weights of here after epoch 1, step 0, got .* in model\.classifier"):
        module.on_save_checkpoint({"state_dict": module.state_dict()})


def test_validation_that_is_not_finite_is_an_error_and_no_early_stop(tmp_path, monkeypatch):
    bags, labels, _ = planted_bags()
    bags["35"][0, 0] = torch.inf  # as what overflows in the model
    monkeypatch.setitem(globals(), "planted_bags", lambda: (bags, labels, {}))
    with pytest.raises(ValueError, match="finite validation losses of here, got others after epoch 1"):
        fit(tmp_path, MaxMIL(8, 2))
