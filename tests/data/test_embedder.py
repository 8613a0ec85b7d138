import numpy as np
import pytest
import torch

from src.data.embedding.embedder import Embedder
from src.ops import dense_products
from tests.data.pictures import Corner, Drawn

COORDS = np.arange(22).reshape(11, 2)
EXPECTED = np.column_stack([np.full(11, 3), COORDS])


def embed(embedder, *units):
    return [(unit, found["output"][:, 0]) for unit, found in embedder.embed(units)]


@pytest.mark.parametrize("n_workers", [0, 1, 3])
def test_no_more_pictures_are_read_at_once_than_a_batch_has(n_workers):
    unit, backbone = Drawn(3, COORDS), Corner()
    ((found, activations),) = embed(Embedder(backbone, 4, n_workers), unit)
    assert found is unit
    np.testing.assert_array_equal(activations, EXPECTED)
    assert sorted(unit.asked) == sorted(backbone.seen) == [3, 4, 4]


def test_units_come_in_order_and_share_no_batch():
    units = [Drawn(1, COORDS[:3]), Drawn(2, COORDS[:0]), Drawn(3, COORDS)]
    backbone = Corner()
    found = embed(Embedder(backbone, 8, 2), *units)
    assert [unit.number for unit, _ in found] == [1, 3]
    assert backbone.seen == [3, 8, 3]
    np.testing.assert_array_equal(found[1][1], EXPECTED)


def test_out_of_memory_halves_the_batch_of_all_later_units():
    backbone = Corner(at_most=2)
    first, second = Drawn(3, COORDS), Drawn(3, COORDS[:4])
    found = embed(Embedder(backbone, 8), first, second)
    np.testing.assert_array_equal(found[0][1], EXPECTED)
    np.testing.assert_array_equal(found[1][1], EXPECTED[:4])
    assert (first.asked, second.asked) == ([8, 3], [4])
    assert max(backbone.seen) == 2
    with pytest.raises(torch.cuda.OutOfMemoryError):
        embed(Embedder(Corner(at_most=0), 2), first)


def test_the_time_that_the_model_waits_is_counted():
    class Slow(Drawn):
        def read(self, *args):
            import time

            time.sleep(0.1)
            return super().read(*args)

    embedder = Embedder(Corner(), 4, 0)
    embed(embedder, Slow(3, COORDS))
    assert embedder.seconds_waited >= 0.3


def test_linear_layers_of_the_model_are_dense_products(monkeypatch):
    taken = []
    monkeypatch.setattr(dense_products, "_takes_onednn", lambda left, right: taken.append((left.shape, right.shape)))

    class Linear(Corner):
        def activations(self, images, layers=None, tokens=None):
            return {"output": torch.nn.functional.linear(super().activations(images)["output"], torch.eye(3))}

    ((_, activations),) = embed(Embedder(Linear(), 8), Drawn(3, COORDS))
    np.testing.assert_array_equal(activations, EXPECTED)
    assert taken == [((8, 3), (3, 3)), ((3, 3), (3, 3))]
