import pytest
import torch

from src.data.scaled_bags import scaled_bags


def test_train_values_get_root_mean_square_one():
    bags = {"a": torch.tensor([[3.0, 4.0]]), "b": torch.tensor([[0.0, 0.0], [5.0, 0.0]]), "test": torch.ones(1, 2)}
    read = scaled_bags(bags.__getitem__, ["a", "b"])
    values = torch.cat([read("a"), read("b")])
    assert values.square().mean().item() == pytest.approx(1)
    # 50 / 6: the held-out slide is scaled by the train slides' number.
    assert read("test")[0, 0].item() == pytest.approx((6 / 50) ** 0.5)
    assert read("b")[0].tolist() == [0, 0]


def test_silent_bags_are_refused():
    with pytest.raises(ValueError, match="values other than 0"):
        scaled_bags(lambda _: torch.zeros(2, 3), ["a"])
