import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from src.models.mil.clam import CLAM, smooth_svm


def scores_and_labels(n=20, n_classes=3):
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(n, n_classes, generator=generator, dtype=torch.float64)
    return scores, torch.randint(n_classes, (n,), generator=generator)


@pytest.mark.parametrize(("margin", "temperature"), [(1.0, 1.0), (0.5, 2.0), (2.0, 0.1)])
def test_the_smooth_svm_is_that_of_its_definition(margin, temperature):
    scores, labels = scores_and_labels()
    losses = []
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        exceeds = [score + (margin if j != label else 0) - row[label] for j, score in enumerate(row)]
        losses.append(temperature * math.log(sum(math.exp(value / temperature) for value in exceeds)))
    assert smooth_svm(scores, labels, margin, temperature).item() == pytest.approx(sum(losses) / len(losses), rel=1e-12)


def test_the_smooth_svm_of_two_classes_by_hand():
    scores, labels = torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1])
    expected = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(3))]
    for row in (0, 1):
        assert smooth_svm(scores[row : row + 1], labels[row : row + 1]).item() == pytest.approx(expected[row], rel=1e-6)


def test_without_margin_the_smooth_svm_is_cross_entropy_and_without_temperature_the_hinge_loss():
    scores, labels = scores_and_labels()
    torch.testing.assert_close(smooth_svm(scores, labels, margin=0), F.cross_entropy(scores, labels))
    hinge = F.multi_margin_loss(scores[:, :2], labels % 2) * 2  # torch divides by the number of classes
    torch.testing.assert_close(smooth_svm(scores[:, :2], labels % 2, temperature=1e-4), hinge, rtol=0, atol=1e-4)


def test_the_smooth_svm_is_finite_where_scores_are_far_apart():
    scores = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    loss = smooth_svm(scores, torch.zeros(2, dtype=torch.int64))
    loss.backward()
    assert loss.item() == pytest.approx((0 + 2e4 + 1) / 2)
    torch.testing.assert_close(scores.grad, torch.tensor([[0.0, 0.0], [-0.5, 0.5]]))


def test_gradients_of_the_smooth_svm():
    scores, labels = scores_and_labels(n=5)
    assert torch.autograd.gradcheck(partial(smooth_svm, labels=labels), scores.requires_grad_())


@pytest.mark.parametrize(("branch_per_class", "subtyping"), [(False, False), (True, True)])
def test_clam_with_the_smooth_svm_differs_in_its_instance_loss_alone(branch_per_class, subtyping):
    """Written out: the true class's four patches at either end, and of other classes the four most attended."""
    torch.manual_seed(0)
    options = {"branch_per_class": branch_per_class, "subtyping": subtyping, "n_sampled": 4, "bag_weight": 0.7}
    model = CLAM(6, 3, instance_loss="svm", **options).eval()
    other = CLAM(6, 3, **options).eval()
    other.load_state_dict(model.state_dict())
    bag, mask, labels = torch.randn(1, 11, 6), torch.ones(1, 11, dtype=torch.bool), torch.tensor([1])
    output, usual = model(bag, mask, labels), other(bag, mask, labels)
    torch.testing.assert_close(output.losses["bag"], usual.losses["bag"])

    hidden, expected = model.patch_encoder(bag[0]).relu(), 0.0
    for class_, classifier in enumerate(model.instance_classifiers):
        order = output.attention[0, class_ if branch_per_class else 0].argsort(descending=True).tolist()
        sampled = [(patch, 1 if class_ == 1 else 0) for patch in order[:4]]
        sampled += [(patch, 0) for patch in order[-4:]] if class_ == 1 else []
        if class_ != 1 and not subtyping:
            continue
        found = [(classifier(hidden[patch]), label) for patch, label in sampled]
        losses = [math.log(1 + math.exp(1 + (score[1 - label] - score[label]).item())) for score, label in found]
        expected += sum(losses) / len(losses) / (3 if subtyping else 1)
    assert output.losses["instance"].item() == pytest.approx(0.3 * expected, rel=1e-5)
    assert output.losses["instance"].item() != pytest.approx(usual.losses["instance"].item(), rel=0.01)


def test_another_instance_loss_is_refused():
    with pytest.raises(ValueError, match="instance_loss to be cross_entropy or svm, got 'hinge'"):
        CLAM(6, 2, instance_loss="hinge")  # pyright: ignore
