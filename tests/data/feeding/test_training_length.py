import pytest

from src.data.feeding.epoch_loader import EpochLoader
from src.data.feeding.epoch_order import EpochOrder
from src.data.feeding.training_length import TrainingLength


def test_epochs_of_which_each_has_a_short_batch():
    length = TrainingLength(n_items=10, batch_size=4, n_total=30)
    assert (length.steps_per_epoch, length.n_epochs, length.n_steps) == (3, 3, 9)
    assert [length.place(step) for step in (0, 2, 3, 7)] == [(0, 0), (0, 8), (1, 0), (2, 4)]


def test_a_budget_that_ends_inside_an_epoch():
    length = TrainingLength(n_items=10, batch_size=4, n_total=25)
    assert (length.n_epochs, length.n_steps) == (3, 8)
    assert length.evenly(4) == [2, 4, 6, 8]
    assert length.evenly(100) == list(range(1, 9))


@pytest.mark.parametrize("block_size", [1, 2, 5])
@pytest.mark.parametrize("resumed_at", [0, 8])
def test_blocks_end_at_stops_and_training_at_its_total(block_size, resumed_at):
    """Epochs have one length, for Lightning counts on it; where there are fewer blocks, empty ones follow."""

    def read(positions, spans):
        return (list(positions[start:stop]) for start, stop in spans)

    loader = EpochLoader(EpochOrder(20, 0), 4, read, block_size=block_size, n_total=30, stops={(0, 8), (1, 4)})
    if resumed_at:
        loader.load_state_dict({**loader.state_dict(), "consumed": resumed_at})
    first, second = list(loader), list(loader)
    assert sorted(item for block in first for item in block) == sorted(loader.order.epoch(0)[resumed_at:])
    assert [item for block in second for item in block] == list(loader.order.epoch(1)[:10])
    ends = [sum(map(len, first[: i + 1])) + resumed_at for i in range(len(first))]
    assert 8 in ends or resumed_at
    assert 4 in [sum(map(len, second[: i + 1])) for i in range(len(second))]
    assert len(second) == len(loader)
    if not resumed_at:
        assert len(first) == len(loader)
    assert loader.state_dict()["epoch"] == 2
