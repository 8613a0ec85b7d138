import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from src.activation_spec import ActivationSpec
from src.stores.latents import writer as writers
from src.stores.latents.store import LatentStore
from tests.latents import make_dense, write_latents


@pytest.fixture(params=[1, 600, writers.SHARD_BYTES])
def shard_bytes(request, monkeypatch):
    """A row a shard, a few rows, everything in one."""
    monkeypatch.setattr(writers, "SHARD_BYTES", request.param)
    return request.param


@pytest.mark.parametrize(("n_latents", "stored_type"), [(9, np.uint8), (256, np.uint8), (257, np.uint16)])
def test_written_and_read(tmp_path, shard_bytes, n_latents, stored_type):
    dense = {"007": make_dense(5, n_latents), "1": make_dense(1, n_latents, 1)}
    coords = {"007": np.arange(10).reshape(5, 2) * 512}
    spec = ActivationSpec(model="vit", layer="3")
    store = write_latents(tmp_path, dense, coords, 512, "abc", spec=spec, sae="1234")
    assert (store.n_latents, store.spec, store.head["sae"]) == (n_latents, spec, "1234")
    assert list(store.items) == ["007", "1"]
    for item_id, expected in dense.items():
        torch.testing.assert_close(store.rows(item_id).to_dense(), expected, rtol=0, atol=0)
        item = store.items[item_id]
        assert (item.n_rows, item.digest, item.patch_size_level0) == (len(expected), "abc", 512)
    np.testing.assert_array_equal(store.coords("007"), coords["007"])
    assert store.coords("1") is None
    assert [item.start for item in store.items.values()] == [0, 5]
    arrays = load_file(tmp_path / store.head["shards"][0][0])  # the format is the library's
    assert {name: array.dtype for name, array in arrays.items()} == {
        "row_offsets": np.int64,
        "values": np.float32,
        "coords": np.int32,
        "neuron_ids": stored_type,
    }
    n_bytes = [(tmp_path / name).stat().st_size for name, _ in store.head["shards"]]
    assert len(n_bytes) == (6 if shard_bytes == 1 else 1 if n_latents == 9 or shard_bytes > 600 else len(n_bytes))


def test_pieces_hold_rows_of_several_items_and_say_whose(tmp_path, shard_bytes):
    dense = {str(i): make_dense(n, 7, i) for i, n in enumerate([3, 1, 9, 4, 2])}
    store = write_latents(tmp_path, dense)
    asked = ["4", "0", "3"]
    found = {item_id: [] for item_id in asked}
    for codes, latents in store.read(asked, 4):
        assert len(codes) == latents.n_rows <= 4
        for code, row in zip(codes, latents.to_dense(), strict=True):
            found[asked[code]].append(row)
    for item_id in asked:
        torch.testing.assert_close(torch.stack(found[item_id]), dense[item_id], rtol=0, atol=0)
    assert [latents.n_rows for _, latents in store.read(["2"], 4)] == [4, 4, 1]


def test_an_item_without_any_latent(tmp_path):
    store = write_latents(tmp_path, {"s": torch.zeros(3, 4)})
    assert store.rows("s").to_dense().tolist() == [[0] * 4] * 3
    assert store.places(2).item_ids == []


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="task=encode"):
        LatentStore(tmp_path)
    store = write_latents(tmp_path, {"s": torch.ones(2, 3)})
    with pytest.raises(ValueError, match=r"among the 1 of .*, got 'x'"):
        store.rows("x")
    with pytest.raises(ValueError, match="got 'x'"):
        store.places(0, item_ids=["x"])
    with pytest.raises(ValueError, match="neuron within 0:3, got 3"):
        store.places(3)


@pytest.mark.parametrize("n_left", [0, 5, 30, 300])
def test_a_damaged_shard_is_named(tmp_path, n_left):
    write_latents(tmp_path, {"s": torch.ones(40, 3)})
    path = tmp_path / "shard_00000.safetensors"
    path.write_bytes(path.read_bytes()[:n_left])
    with pytest.raises(ValueError, match=r"readable latents at .*shard_00000.*task=encode"):
        LatentStore(tmp_path).rows("s")


def test_the_index_holds_a_digest_of_every_file_and_one_of_all(tmp_path):
    dense = {"a": make_dense(5, 9)}
    one = write_latents(tmp_path / "1", dense)
    same = write_latents(tmp_path / "2", dense)
    other = write_latents(tmp_path / "3", {"a": make_dense(5, 9, 1)})
    assert one.head["digest"] == same.head["digest"] != other.head["digest"]
    digests = json.loads((tmp_path / "1" / "index.json").read_text())["digests"]
    assert set(digests) == {"index.csv", "shard_00000.safetensors", "by_neuron.npy", "by_neuron_offsets.npy"}


def test_ids_that_look_like_numbers_or_blanks_stay_texts(tmp_path):
    dense = {name: make_dense(1, 4) for name in ("007", "NA", "1e5", "null")}
    assert list(write_latents(tmp_path, dense).items) == list(dense)
    assert pd.read_csv(tmp_path / "index.csv").shape == (4, 5)


def test_size_on_disk(tmp_path):
    """200,000 patches with 16 of 2048 latents each take under 40 MB, and 26 MB more by neuron."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.zeros(10_000, 2048)
    places = torch.rand(dense.shape, generator=generator).topk(16).indices
    dense.scatter_(1, places, 1 + torch.rand(places.shape, generator=generator))
    coords = np.zeros((10_000, 2), np.int32)
    of_items = dict.fromkeys(map(str, range(4)), dense)
    write_latents(tmp_path, of_items, dict.fromkeys(of_items, coords), 512, "0" * 32)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    by_neuron = sizes.pop("by_neuron.npy")
    assert sum(sizes.values()) < 40e6 / 5
    assert by_neuron < 26e6 / 5
