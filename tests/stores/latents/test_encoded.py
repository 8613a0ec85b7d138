import numpy as np
import pytest
import torch

from src.inference import Inference
from src.models.saes.topk import TopK
from src.stores.latents.encoded import EncodedLatents
from src.stores.latents.index import LatentItem
from tests.latents import write_latents

SIZES = {"b": 3, "a": 1, "c": 6}


@pytest.fixture
def sae():
    torch.manual_seed(0)
    return TopK(5, 12, k=4).eval()


def make_sources(sae, path, inference=None):
    """The same latents, encoded when asked and stored."""
    activations = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    starts = {"b": 10, "a": 2, "c": 13}
    items = [LatentItem(item_id, starts[item_id], n, f"d{item_id}", 256) for item_id, n in SIZES.items()]
    coords = {item_id: np.arange(2 * n).reshape(n, 2) for item_id, n in SIZES.items()}
    encoded = EncodedLatents(sae, items, activations.__getitem__, coords.__getitem__, inference)
    rows = {item.item_id: activations[item.start : item.start + item.n_rows] for item in items}
    with torch.no_grad():
        dense = {item_id: sae.encode(torch.from_numpy(of_item)).to_dense() for item_id, of_item in rows.items()}
    return encoded, write_latents(path, dense, coords, 256)


def test_an_sae_over_activations_reads_as_a_store_does(sae, tmp_path):
    encoded, stored = make_sources(sae, tmp_path)
    assert list(encoded.items) == list(stored.items)
    assert (encoded.n_latents, encoded.spec) == (stored.n_latents, stored.spec)
    for item_id, n_rows in SIZES.items():
        torch.testing.assert_close(encoded.rows(item_id).to_dense(), stored.rows(item_id).to_dense())
        assert encoded.items[item_id].n_rows == stored.items[item_id].n_rows == n_rows
        np.testing.assert_array_equal(encoded.coords(item_id), stored.coords(item_id))
    for neuron_id in range(12):
        mine, other = encoded.places(neuron_id, 4, ["c", "a"]), stored.places(neuron_id, 4, ["c", "a"])
        assert mine.item_ids == other.item_ids
        assert mine.rows.tolist() == other.rows.tolist()
        np.testing.assert_allclose(mine.values, other.values, rtol=1e-5)
        if len(mine.rows):
            np.testing.assert_array_equal(mine.coords, other.coords)
    with pytest.raises(ValueError, match="got 'x'"):
        encoded.rows("x")


def test_pieces_that_are_halved_on_the_way_still_belong_to_their_items(sae, tmp_path, monkeypatch):
    encoded, _ = make_sources(sae, tmp_path, Inference())
    expected = {item_id: encoded.rows(item_id).to_dense() for item_id in SIZES}
    encode = sae.encode

    def encode_few(activations):
        if len(activations) > 3:
            raise torch.cuda.OutOfMemoryError
        return encode(activations)

    monkeypatch.setattr(sae, "encode", encode_few)
    ids = list(SIZES)
    found = {item_id: [] for item_id in ids}
    for codes, latents in encoded.read(ids):
        assert latents.n_rows <= 3
        for code, row in zip(codes, latents.to_dense(), strict=True):
            found[ids[code]].append(row)
    for item_id in ids:
        torch.testing.assert_close(torch.stack(found[item_id]), expected[item_id])


def test_no_more_rows_are_encoded_at_once_than_memory_is_to_hold(sae, tmp_path):
    encoded, _ = make_sources(sae, tmp_path)
    sizes, encode = [], sae.encode
    sae.encode = lambda rows: sizes.append(len(rows)) or encode(rows)
    limited = EncodedLatents(sae, encoded.items.values(), encoded._gather, most_rows=4)
    found = torch.cat([latents.to_dense() for _, latents in limited.read(SIZES, 100)])
    assert max(sizes) == 4
    torch.testing.assert_close(found, torch.cat([latents.to_dense() for _, latents in encoded.read(SIZES)]))
