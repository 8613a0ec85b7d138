import numpy as np
import pytest

from tests.latents import make_dense, write_latents


@pytest.mark.parametrize("by_neuron", [True, False])
def test_maxima_of_items_are_those_of_their_rows(tmp_path, by_neuron):
    dense = {f"i{number}": make_dense(5 + number, 8, seed=number) for number in range(6)}
    store = write_latents(tmp_path, dense, by_neuron=by_neuron)
    asked = ["i4", "i0", "i5"]
    found = store.item_maxima([7, 1, 2], asked)
    expected = np.stack([dense[item_id][:, [7, 1, 2]].amax(0).numpy() for item_id in asked])
    np.testing.assert_array_equal(found, expected)
    assert not found[:, 1].any()  # a silent neuron
    with pytest.raises(ValueError, match="'i9'"):
        store.item_maxima([0], ["i9"])
    with pytest.raises(ValueError, match="within 0:8"):
        store.item_maxima([8], ["i0"])
