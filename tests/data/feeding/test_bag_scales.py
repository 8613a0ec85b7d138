import numpy as np
import pytest
import torch
import torch.nn.functional as F

from src.data.feeding.bags import activation_scale, latent_scale
from src.models.mil.attention import AttentionMIL
from src.ops.sparse_latents import SparseLatents


def _scaled(scale, bags, train):
    factor = scale(bags.__getitem__, train)
    return lambda item_id: bags[item_id] * factor


def test_train_values_get_root_mean_square_one():
    bags = {"a": torch.tensor([[3.0, 4.0]]), "b": torch.tensor([[0.0, 0.0], [5.0, 0.0]]), "test": torch.ones(1, 2)}
    read = _scaled(activation_scale, bags, ["a", "b"])
    values = torch.cat([read("a"), read("b")])
    assert values.square().mean().item() == pytest.approx(1)
    # 50 / 6: the held-out slide is scaled by the train slides' number.
    assert read("test")[0, 0].item() == pytest.approx((6 / 50) ** 0.5)
    assert read("b")[0].tolist() == [0, 0]


def test_each_neuron_gets_root_mean_square_one_where_it_is_active():
    bags = {"a": torch.tensor([[3.0, 0.0, 0.0], [0.0, 200.0, 0.0]]), "b": torch.tensor([[5.0, 0.0, 0.0]])}
    read = _scaled(latent_scale, bags, ["a", "b"])
    scale = (34 / 2) ** 0.5
    np.testing.assert_allclose(read("a"), [[3 / scale, 0, 0], [0, 1, 0]], rtol=1e-6)
    np.testing.assert_allclose(read("b"), [[5 / scale, 0, 0]], rtol=1e-6)
    # Neuron 2 is silent on the train slides, and stays as it is.
    assert latent_scale(lambda _: torch.tensor([[1.0, 0.0]]), ["a"]).tolist() == [1, 1]


def test_sparse_latents_have_the_scale_of_dense_ones():
    bags = {"a": torch.tensor([[3.0, 0.0, 0.0], [0.0, 200.0, 0.0]]), "b": torch.tensor([[5.0, 0.0, 0.0]])}
    sparse = {item_id: SparseLatents.from_dense(bag) for item_id, bag in bags.items()}
    torch.testing.assert_close(latent_scale(sparse.__getitem__, bags), latent_scale(bags.__getitem__, bags))


@pytest.mark.parametrize("scaled", [activation_scale, latent_scale])
def test_silent_bags_are_refused(scaled):
    with pytest.raises(ValueError, match="values other than 0"):
        scaled(lambda _: torch.zeros(2, 3), ["a"])


def _heavy_tails(n_slides, seed=0):
    """Latents of which one in five is active, log-normal with a sigma of 2.5; neuron 0 fires, weakly, in class 1."""
    rng = np.random.default_rng(seed)
    bags = {}
    for index in range(n_slides):
        bag = np.exp(2.5 * rng.normal(size=(rng.integers(4, 12), 16)))
        bag *= rng.random(bag.shape) < 0.2
        bag[:, 0] = (index % 2) * (rng.random(len(bag)) < 0.5)
        bags[str(index)] = torch.from_numpy(bag.astype(np.float32))
    return bags


@pytest.mark.slow
def test_heavy_tails_of_other_neurons_do_not_hide_the_one_that_tells():
    """With one scale for all neurons the model predicts one class for every slide: an accuracy of exactly 0.5."""
    bags = _heavy_tails(120)
    train, test = list(bags)[:80], list(bags)[80:]
    read = _scaled(latent_scale, bags, train)
    torch.manual_seed(0)
    model, generator = AttentionMIL(16, 2), np.random.default_rng(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=1e-5)

    def logits(item_id):
        return model(read(item_id)[None], torch.ones(1, len(bags[item_id]), dtype=torch.bool)).logits

    for _ in range(20):
        for item_id in generator.permutation(train):
            optimizer.zero_grad()
            F.cross_entropy(logits(item_id), torch.tensor([int(item_id) % 2])).backward()
            optimizer.step()
    model.eval()
    right = [int(logits(item_id).argmax()) == int(item_id) % 2 for item_id in test]
    assert np.mean(right) > 0.85
