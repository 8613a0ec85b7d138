from functools import partial

import pytest
import torch
import torch.nn.functional as F

from src.models.mil.attention import AttentionMIL
from src.models.mil.base import bag_softmax, weighted_sums
from src.models.mil.clam import CLAM
from src.models.mil.dsmil import DSMIL
from src.models.mil.max_pool import MaxMIL
from src.models.mil.mean_pool import MeanMIL
from src.models.mil.transmil import TransMIL
from src.ops.sparse_latents import SparseLatents

D_IN = 6
SMALL_TRANSMIL = partial(TransMIL, n_hidden=16, n_heads=2)
MODELS = {
    "max": MaxMIL,
    "mean": MeanMIL,
    "attention": AttentionMIL,
    "gated": partial(AttentionMIL, gated=True),
    "clam_sb": CLAM,
    "clam_mb": partial(CLAM, branch_per_class=True, subtyping=True),
    "transmil": SMALL_TRANSMIL,
    "dsmil": DSMIL,
}


@pytest.fixture(params=list(MODELS))
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param](D_IN, 3).eval()


def bags_of(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, D_IN, generator=generator) for size in sizes]


def one(model, bag, labels=None):
    return model(bag[None], torch.ones(1, len(bag), dtype=torch.bool), labels)


def together(bags, padding):
    longest = max(len(bag) for bag in bags) + 2
    padded = torch.full((len(bags), longest, D_IN), padding)
    mask = torch.zeros(len(bags), longest, dtype=torch.bool)
    for row, bag in enumerate(bags):
        padded[row, : len(bag)], mask[row, : len(bag)] = bag, True
    return padded, mask


def test_the_order_of_patches_changes_nothing(model):
    if isinstance(model, TransMIL):
        pytest.skip("TransMIL lays patches out in their order")
    (bag,) = bags_of(9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    plain, permuted = one(model, bag), one(model, bag[order])
    torch.testing.assert_close(permuted.logits, plain.logits)
    torch.testing.assert_close(permuted.instance_logits, plain.instance_logits[:, order])
    if plain.attention is not None:
        torch.testing.assert_close(permuted.attention, plain.attention[:, :, order])


@pytest.mark.parametrize("padding", [1e4, float("nan"), float("inf")])
def test_a_bag_gives_the_same_alone_and_padded_in_a_batch_whatever_padding_holds(model, padding):
    bags, labels = bags_of(1, 7, 9), torch.tensor([0, 1, 2])
    padded, mask = together(bags, padding)
    output = model(padded, mask, labels)
    for row, bag in enumerate(bags):
        alone = one(model, bag, labels[row : row + 1])
        torch.testing.assert_close(output.logits[row], alone.logits[0])
        assert output.losses.keys() == alone.losses.keys()
        for name, losses in output.losses.items():
            torch.testing.assert_close(losses[row], alone.losses[name][0])
        if output.attention is not None:
            torch.testing.assert_close(output.attention[row, :, : len(bag)], alone.attention[0])
            assert (output.attention[row, :, len(bag) :] == 0).all()
            assert (alone.attention >= 0).all()
            torch.testing.assert_close(output.attention[row].sum(1), torch.ones(output.attention.shape[1]))
        if output.instance_logits is not None:
            torch.testing.assert_close(output.instance_logits[row, : len(bag)], alone.instance_logits[0])
    sum(losses.sum() for losses in output.losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_bags_of_one_and_of_seven_patches_are_trained_on(model):
    model.train()
    for bag in bags_of(1, 7):
        losses = one(model, bag, torch.tensor([1])).losses
        sum(losses.values()).sum().backward()
        assert all(loss.isfinite().all() for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_bag_without_patches_is_refused(model):
    (bag,) = bags_of(4)
    mask = torch.tensor([[True] * 4, [False] * 4])
    with pytest.raises(ValueError, match="at least one patch, got none in bag 1 of 2"):
        model(torch.stack([bag, bag]), mask)


def test_bag_logits_come_from_instance_logits():
    (bag,) = bags_of(9)
    for name, pool in (("max", torch.amax), ("mean", torch.mean)):
        output = one(MODELS[name](D_IN, 3).eval(), bag)
        torch.testing.assert_close(output.logits, pool(output.instance_logits, dim=1))
    for name in ("attention", "gated", "clam_sb", "clam_mb"):
        output = one(MODELS[name](D_IN, 3).eval(), bag)
        weights = output.attention.transpose(1, 2)  # [1, n_patches, n_branches]
        torch.testing.assert_close(output.logits, (weights * output.instance_logits).sum(1))


def test_dropout_is_on_in_training_only(model):
    if isinstance(model, DSMIL):
        pytest.skip("DSMIL has no dropout")
    (bag,) = bags_of(9)
    assert torch.equal(one(model, bag).logits, one(model, bag).logits)
    model.train()
    assert not torch.equal(one(model, bag).logits, one(model, bag).logits)


def test_sparse_bags_give_what_dense_ones_give(model):
    model = model.double()
    bags = [bag.relu().double() for bag in bags_of(3, 5)]
    padded, mask = together(bags, 0.0)
    padded = padded.double()
    sparse = SparseLatents.from_dense(torch.cat(bags))
    labels = torch.tensor([2, 0])
    for mode in (model.eval(), model.train()):
        found = []
        for given in (padded, sparse):
            mode.zero_grad()
            torch.manual_seed(3)
            output = mode(given, mask, labels)
            sum(output.losses.values()).sum().backward()
            gradients = [p.grad.clone() for p in mode.parameters() if p.grad is not None]
            found.append((output.logits.detach(), *gradients))
        for dense_value, sparse_value in zip(*found, strict=True):
            torch.testing.assert_close(sparse_value, dense_value)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_max_pooling_trains_on_its_winners_with_the_gradients_of_the_full_computation(dropout, activation, monkeypatch):
    """Under one given dropout of all patches, of bags that are cut into pieces and of bags that share one."""
    monkeypatch.setattr("src.models.mil.max_pool._PIECE_ROWS", 16)
    model = MaxMIL(D_IN, 3, n_hidden=32, dropout=dropout, activation=activation).double().train()
    bags = [bag.double() for bag in bags_of(40, 1, 7)]
    kept = torch.rand(48, 32, generator=torch.Generator().manual_seed(0)) >= dropout
    monkeypatch.setattr("src.models.mil.max_pool.kept_units", lambda *_: kept)
    labels = torch.tensor([0, 1, 2])
    padded, mask = together(bags, 0.0)
    output = model(padded.double(), mask, labels)
    output.losses["bag"].sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    act = F.relu if activation == "relu" else F.gelu
    hidden = act(model.patch_encoder(torch.cat(bags))) * kept / (1 - dropout)
    logits = torch.stack([one.max(0).values for one in model.classifier(hidden).split([40, 1, 7])])
    torch.testing.assert_close(output.logits, logits)
    F.cross_entropy(logits, labels, reduction="sum").backward()
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_the_instance_loss_of_clam_by_hand():
    """The two most attended patches of three are called positive, the two least negative."""
    model = CLAM(D_IN, 2, n_sampled=2, bag_weight=0.7).eval()
    (bag,) = bags_of(3)
    output = one(model, bag, torch.tensor([1]))
    order = output.attention[0, 0].argsort(descending=True)
    hidden = model.patch_encoder(bag).relu()
    evidence = model.instance_classifiers[1](hidden)[order[[0, 1, 2, 1]]]
    expected = F.cross_entropy(evidence, torch.tensor([1, 1, 0, 0]))
    torch.testing.assert_close(output.losses["instance"], 0.3 * expected[None])
    torch.testing.assert_close(output.losses["bag"], 0.7 * F.cross_entropy(output.logits, torch.tensor([1]))[None])


def test_the_losses_of_dsmil_are_sigmoid_losses_of_bag_and_best_patch():
    model = DSMIL(D_IN, 2).eval()
    (bag,) = bags_of(5)
    output = one(model, bag, torch.tensor([1]))
    target, highest = torch.ones(1), output.instance_logits[0, :, 1].max()[None]
    expected = {"bag": output.logits[:, 1], "instance": highest}
    for name, logit in expected.items():
        torch.testing.assert_close(output.losses[name], 0.5 * F.binary_cross_entropy_with_logits(logit, target)[None])
    # Attention compares every patch with the highest-scored one.
    queries = model.query(bag)
    likeness = queries @ queries[output.instance_logits[0, :, 1].argmax()] / 128**0.5
    torch.testing.assert_close(output.attention[0, 0], likeness.softmax(0))


@pytest.mark.parametrize(
    ("model", "n_parameters"),
    [
        *((MaxMIL(512, 2), 263_682), (MeanMIL(512, 2), 263_682), (AttentionMIL(512, 2), 329_475)),
        *((AttentionMIL(512, 2, gated=True), 395_139), (CLAM(512, 2), 528_647), (TransMIL(512, 2), 2_410_002)),
        *((CLAM(512, 2, branch_per_class=True), 528_904), (DSMIL(512, 2), 83_202)),
    ],
)
def test_sizes_are_the_published_ones(model, n_parameters):
    assert sum(parameter.numel() for parameter in model.parameters()) == n_parameters


def test_softmax_and_sums_of_bags_by_hand():
    attention = bag_softmax(torch.tensor([[1.0], [3.0], [5.0]]).log(), [2, 1])
    torch.testing.assert_close(attention, torch.tensor([[0.25], [0.75], [1.0]]))
    sums = weighted_sums(attention, torch.tensor([[4.0], [8.0], [2.0]]), [2, 1])
    torch.testing.assert_close(sums, torch.tensor([[[7.0]], [[2.0]]]))
