import numpy as np
import pytest
import torch

from src.stores.latents import by_neuron as by_neurons
from src.stores.latents import writer as writers
from tests.latents import make_dense, write_latents


@pytest.fixture
def dense():
    return {str(i): make_dense(n, 300, i) for i, n in enumerate([3, 1, 90, 4, 2])}


def expected_places(dense, neuron_id, item_ids=None):
    found = [
        (-float(value), number, item_id, row)
        for number, (item_id, row, value) in enumerate(
            (item_id, row, value) for item_id, rows in dense.items() for row, value in enumerate(rows[:, neuron_id])
        )
        if value > 0 and (item_ids is None or item_id in item_ids)
    ]
    return [(item_id, row, -value) for value, _, item_id, row in sorted(found)]


def listed(places):
    return list(zip(places.item_ids, places.rows.tolist(), places.values.tolist(), strict=True))


@pytest.mark.parametrize("by_neuron", [True, False])
@pytest.mark.parametrize(("shard_bytes", "n_entries"), [(200, 7), (writers.SHARD_BYTES, 1 << 22)])
def test_places_are_all_entries_most_first(tmp_path, monkeypatch, dense, by_neuron, shard_bytes, n_entries):
    monkeypatch.setattr(writers, "SHARD_BYTES", shard_bytes)
    monkeypatch.setattr(by_neurons, "_PIECE_ENTRIES", n_entries)
    store = write_latents(tmp_path, dense, by_neuron=by_neuron)
    assert (tmp_path / "by_neuron.npy").exists() == by_neuron
    for neuron_id in (0, 1, 2, 299):
        everywhere = expected_places(dense, neuron_id)
        assert listed(store.places(neuron_id)) == everywhere
        assert listed(store.places(neuron_id, 5)) == everywhere[:5]
        some = expected_places(dense, neuron_id, {"4", "2"})
        assert listed(store.places(neuron_id, item_ids=["4", "2"])) == some
        assert listed(store.places(neuron_id, 3, ["4", "2"])) == some[:3]
    assert len(set(store.places(0).values.tolist())) < len(store.places(0).values)  # there were equal ones


@pytest.mark.parametrize("by_neuron", [True, False])
def test_places_come_with_coords(tmp_path, dense, by_neuron):
    coords = {item_id: np.arange(2 * len(rows)).reshape(-1, 2) + 1000 * int(item_id) for item_id, rows in dense.items()}
    store = write_latents(tmp_path, dense, coords, by_neuron=by_neuron)
    places = store.places(0, 20)
    assert len(places.item_ids) == 20
    for item_id, row, place in zip(places.item_ids, places.rows, places.coords, strict=True):
        assert place.tolist() == coords[item_id][row].tolist()
    assert write_latents(tmp_path / "none", dense, by_neuron=by_neuron).places(0, 20).coords is None


def test_the_file_is_plain(tmp_path, dense):
    write_latents(tmp_path, dense)
    entries, offsets = np.load(tmp_path / "by_neuron.npy"), np.load(tmp_path / "by_neuron_offsets.npy")
    together = torch.cat(list(dense.values())).numpy()
    of_neuron = entries[offsets[5] : offsets[6]]
    assert of_neuron["value"].tolist() == sorted(together[together[:, 5] > 0, 5].tolist(), reverse=True)
    np.testing.assert_array_equal(together[of_neuron["row"], 5], of_neuron["value"])


def test_without_any_entry(tmp_path):
    store = write_latents(tmp_path, {"a": torch.zeros(3, 4)})
    assert store.places(0).rows.shape == (0,)
