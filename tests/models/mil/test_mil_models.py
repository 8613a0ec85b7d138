import pytest
import torch

from src.models.mil.attention import AttentionMIL
from src.models.mil.base import masked_max, masked_softmax
from src.models.mil.max_pool import MaxMIL

D_IN = 6


def gated(d_in, n_classes):
    return AttentionMIL(d_in, n_classes, gated=True)


@pytest.fixture(params=[MaxMIL, AttentionMIL, gated], ids=["max", "attention", "gated"])
def model(request):
    torch.manual_seed(0)
    return request.param(D_IN, 3).eval()


def bags_of(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, D_IN, generator=generator) for size in sizes]


def one(model, bag):
    return model(bag[None], torch.ones(1, len(bag), dtype=torch.bool))


def test_the_order_of_patches_changes_nothing(model):
    (bag,) = bags_of(9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    plain, permuted = one(model, bag), one(model, bag[order])
    torch.testing.assert_close(permuted.logits, plain.logits)
    torch.testing.assert_close(permuted.instance_logits, plain.instance_logits[:, order])
    if plain.attention is not None:
        torch.testing.assert_close(permuted.attention, plain.attention[:, order])


def test_padded_equals_unpadded_whatever_the_padding_holds(model):
    bags = bags_of(1, 4, 9)
    padded = torch.full((3, 11, D_IN), 1e4)
    mask = torch.zeros(3, 11, dtype=torch.bool)
    for row, bag in enumerate(bags):
        padded[row, : len(bag)], mask[row, : len(bag)] = bag, True
    together = model(padded, mask)
    for row, bag in enumerate(bags):
        alone = one(model, bag)
        torch.testing.assert_close(together.logits[row], alone.logits[0])
        if together.attention is not None:
            torch.testing.assert_close(together.attention[row, : len(bag)], alone.attention[0])
            assert (together.attention[row, len(bag) :] == 0).all()
            assert together.attention[row].sum().item() == pytest.approx(1)


def test_an_empty_row_stays_finite_also_backwards(model):
    (bag,) = bags_of(4)
    mask = torch.tensor([[True] * 4, [False] * 4])
    output = model(torch.stack([bag, bag]), mask)
    assert output.logits.isfinite().all()
    torch.testing.assert_close(output.logits[0], one(model, bag).logits[0])
    output.logits.logsumexp(-1).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_bag_of_one_patch_speaks_for_itself(model):
    (bag,) = bags_of(1)
    output = one(model, bag)
    torch.testing.assert_close(output.logits, output.instance_logits[:, 0])


def test_bag_logits_come_from_instance_logits(model):
    (bag,) = bags_of(9)
    output = one(model, bag)
    if output.attention is None:
        expected = output.instance_logits.max(dim=1).values
    else:
        expected = (output.attention.unsqueeze(-1) * output.instance_logits).sum(dim=1)
    torch.testing.assert_close(output.logits, expected)


def test_dropout_is_on_in_training_only(model):
    (bag,) = bags_of(9)
    assert torch.equal(one(model, bag).logits, one(model, bag).logits)
    model.train()
    assert not torch.equal(one(model, bag).logits, one(model, bag).logits)


def test_masked_softmax_and_max_by_hand():
    scores = torch.tensor([[0.0, 1.0, 5.0], [2.0, 2.0, 2.0]]).log()
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_softmax(scores, mask).tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    values = torch.tensor([[[-3.0], [-1.0], [7.0]], [[1.0], [2.0], [3.0]]])
    assert masked_max(values, mask).tolist() == [[-1.0], [0.0]]
