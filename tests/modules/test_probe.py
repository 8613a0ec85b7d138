import lightning
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from src.analysis.logistic_probe import fit_logistic
from src.data.feeding.item_vectors import ItemVectors
from src.data.feeding.probe_batches import ProbeDataModule
from src.models.probes import Probe
from src.modules.probe import ProbeModule
from src.ops.probe_losses import class_weights, probe_loss

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning 2.6 under torch 2.15


def make_data(n_classes=3, n=120, d=6, is_multilabel=False, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, d)).astype(np.float32)
    scores = values[:, :n_classes] * 1.5 + rng.normal(size=(n, n_classes))
    if not is_multilabel:
        return values, scores.argmax(1)
    targets = (scores > 0.5).astype(np.float32)
    targets[rng.random(targets.shape) < 0.2] = np.nan
    return values, targets


def fit(folder, values, targets, d_hidden=0, max_epochs=300, lr=0.02, weights=None, **penalties):
    targets = torch.from_numpy(targets)
    n_classes = int(targets.max()) + 1 if targets.ndim == 1 else targets.shape[1]
    torch.manual_seed(0)
    probe = Probe(
        values.shape[1], [str(c) for c in range(n_classes)], is_multilabel=targets.ndim == 2, d_hidden=d_hidden
    )
    weights = class_weights(targets, n_classes, False) if weights is None else weights
    module = ProbeModule(probe, weights, lr, name="here", **penalties)
    vectors = ItemVectors(values, np.arange(len(values)))
    data = ProbeDataModule(vectors, targets, range(len(values)), range(0), 0, len(values))
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        limit_val_batches=0,
        log_every_n_steps=1,
    )
    trainer.fit(module, data)
    return probe.eval()


@pytest.mark.parametrize(("n_classes", "is_multilabel"), [(3, False), (2, False), (3, True)])
@pytest.mark.slow
def test_both_solvers_find_the_same_probe(tmp_path, n_classes, is_multilabel):
    values, targets = make_data(n_classes, is_multilabel=is_multilabel)
    weights = class_weights(torch.from_numpy(targets), n_classes, True)
    probe = fit(tmp_path, values, targets, l2=0.05, weights=weights, max_epochs=500)
    weight, bias = fit_logistic(values, targets, weights.numpy(), 0.05)
    np.testing.assert_allclose(probe.output.weight.detach(), weight, atol=5e-3)
    differences = probe.output.bias.detach().numpy() - bias  # softmax does not see a common shift
    np.testing.assert_allclose(differences - (0 if is_multilabel else differences.mean()), 0, atol=5e-3)


@pytest.mark.slow
def test_l1_makes_the_weights_that_scikit_learn_makes(tmp_path):
    values, targets = make_data(2, n=200, d=12)
    probe = fit(tmp_path, values, targets, l1=0.05, max_epochs=600, lr=0.01)
    # Of two logits each has half of one's weight, and the penalties of both add up to that of one.
    model = LogisticRegression(C=1 / (0.05 * 200), l1_ratio=1.0, solver="saga", tol=1e-8, max_iter=20_000)
    expected = model.fit(values, targets).coef_[0]
    weight = probe.output.weight.detach().numpy()
    np.testing.assert_allclose(weight[1] - weight[0], expected, atol=5e-3)
    assert ((weight[1] == 0) & (weight[0] == 0)).sum() == (expected == 0).sum() > 0


@pytest.mark.slow
def test_a_hidden_layer_learns_what_a_linear_probe_cannot(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(400, 2)).astype(np.float32)
    targets = (values[:, 0] * values[:, 1] > 0).astype(np.int64)
    right = {}
    for d_hidden in (0, 16):
        probe = fit(tmp_path, values, targets, d_hidden=d_hidden)
        right[d_hidden] = (probe(torch.from_numpy(values)).argmax(1).numpy() == targets).mean()
    assert right[16] > 0.95
    assert right[0] < 0.65


def test_labels_that_nobody_knows_are_left_out():
    logits = torch.tensor([[2.0, -1.0], [0.0, 3.0]])
    targets = torch.tensor([[1.0, float("nan")], [0.0, 1.0]])
    known = torch.stack(
        [-logits[0, 0].sigmoid().log(), -(1 - logits[1, 0].sigmoid()).log(), -logits[1, 1].sigmoid().log()]
    )
    assert probe_loss(logits, targets) == pytest.approx(known.sum().item() / 2)
    weights = class_weights(targets, 2, False)
    expected = known[:2].mean() + known[2]  # each label's mean over the vectors of which it is known
    assert probe_loss(logits, targets, weights) == pytest.approx(expected.item())


def test_balanced_weights_are_scikit_learns():
    targets = torch.tensor([0, 0, 0, 1, 2, 2])
    assert class_weights(targets, 3, True).tolist() == pytest.approx([6 / 9, 2.0, 1.0])
    labels = torch.tensor([[1.0], [0], [0], [0]])
    assert class_weights(labels, 1, True).tolist() == [pytest.approx([4 / 6, 2.0])]


def test_training_that_diverges_is_refused(tmp_path):
    values, targets = make_data()
    values[3] = 1e30
    with pytest.raises(ValueError, match=r"Expected finite"):
        fit(tmp_path, values, targets, lr=1e10, max_epochs=50)
