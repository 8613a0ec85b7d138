import logging

import numpy as np
import pytest

from src.activation_spec import ActivationSpec
from src.data.embedding.embedder import Embedder
from src.data.embedding.image_store import check_specs, embed_images, lacking_images
from src.data.packing import pack_activations
from src.data.readers.packed_folder import PackedFolder
from src.stores.activations.index import read_skipped, shard_numbers
from src.stores.activations.merge import move_shards
from src.stores.activations.store import ActivationStore
from tests.data.pictures import Corner

SPEC = ActivationSpec(model="corner", layer="output")
IDS = [f"i{number}" for number in range(10)]


class Source:
    """Images of one colour each, their number; those in `bad` cannot be read."""

    def __init__(self, bad=()):
        self.bad, self.read_ids = set(bad), []

    def read(self, item_id):
        self.read_ids.append(item_id)
        if item_id in self.bad:
            raise ValueError(f"Expected an image, got nothing of use in {item_id}.")
        return np.full((4, 4, 3), int(item_id[1:]), np.uint8)


def identities(item_ids=IDS, time=1):
    return {item_id: (f"{item_id}.png", 10, time) for item_id in item_ids}


def embed(folder, source, known=None, skips=False, n_tokens=2, **options):
    known = identities() if known is None else known
    stores = {"output": (folder, SPEC, lacking_images([folder], known))}
    return list(embed_images(Embedder(Corner(n_tokens=n_tokens), 4, 2), source, known, stores, skips, **options))


def check(store, item_ids=IDS):
    assert set(store.item_ids) == set(item_ids)
    for item_id in item_ids:
        np.testing.assert_array_equal(store.rows(item_id), [[int(item_id[1:]) + token] * 3 for token in range(2)])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_tokens_of_every_image_are_stored(tmp_path, dtype):
    embed(tmp_path / "store", Source(), dtype=dtype)
    store = ActivationStore(tmp_path / "store")
    check(store)
    assert (store.dtype, store.spec) == (np.dtype(dtype), SPEC)
    assert len(list((tmp_path / "store").iterdir())) == 3  # rows, index, spec


def test_what_was_embedded_before_a_failure_is_kept_and_not_read_again(tmp_path):
    with pytest.raises(ValueError, match="nothing of use in i9"):
        embed(tmp_path / "store", Source(bad=["i9"]))
    check(ActivationStore(tmp_path / "store"), IDS[:8])
    source = Source()
    embed(tmp_path / "store", source)
    assert sorted(source.read_ids) == ["i8", "i9"]
    check(ActivationStore(tmp_path / "store"))


def test_bad_images_are_left_out_noted_and_not_read_again(tmp_path):
    steps = embed(tmp_path / "store", Source(bad=["i5"]), skips=True)
    assert [list(bad) for bad in steps] == [[], ["i5"], []]
    assert list(read_skipped(tmp_path / "store")) == ["i5"]
    source = Source()
    embed(tmp_path / "store", source, skips=True)
    assert source.read_ids == []
    embed(tmp_path / "store", source, identities(time=2), skips=True)
    assert len(source.read_ids) == 10


def test_a_folder_of_another_spec_is_refused_with_both_printed(tmp_path):
    embed(tmp_path / "store", Source())
    with pytest.raises(ValueError, match=r"(?s)here: .*other.*there: .*corner"):
        check_specs(tmp_path / "store", ActivationSpec(model="other", layer="output"))


def test_parts_are_taken_over_without_copying_and_again_after_a_kill(tmp_path, monkeypatch):
    whole = tmp_path / "store"
    for number, ids in enumerate((IDS[:5], IDS[5:])):
        embed(whole / f"part_{number}_of_2", Source(), identities(ids))
    places = {path.stat().st_ino for path in whole.rglob("shard_*.npy")}
    from src.stores.activations import merge

    with monkeypatch.context() as patch:
        patch.setattr(merge, "write_index", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            move_shards(whole / "part_0_of_2", whole)
    for number in range(2):
        move_shards(whole / f"part_{number}_of_2", whole)
    assert {path.stat().st_ino for path in whole.rglob("shard_*.npy")} == places
    assert shard_numbers(whole) == [0, 1]
    check(ActivationStore(whole))
    assert not list(whole.glob("part_*"))


def test_a_part_that_was_listed_but_not_emptied_is_not_taken_over_twice(tmp_path, monkeypatch):
    embed(tmp_path / "part", Source())
    from src.stores.activations import merge

    with monkeypatch.context() as patch:
        patch.setattr(merge.shutil, "rmtree", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(merge, "index_path", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            move_shards(tmp_path / "part", tmp_path / "store")
    move_shards(tmp_path / "part", tmp_path / "store")
    assert shard_numbers(tmp_path / "store") == [0]
    check(ActivationStore(tmp_path / "store"))


def test_the_store_is_read_where_it_lies_and_images_that_it_lacks_are_named(tmp_path, caplog):
    embed(tmp_path / "store", Source(bad=["i5"]), skips=True)
    store = pack_activations(PackedFolder(tmp_path / "store"), IDS[:3], tmp_path / "cache")
    check(store, IDS[:3])
    assert not (tmp_path / "cache").exists()
    with pytest.raises(FileNotFoundError, match=r"'i5' .*nothing of use"):
        pack_activations(PackedFolder(tmp_path / "store"), IDS, tmp_path / "cache")
    with caplog.at_level(logging.WARNING):
        store = pack_activations(PackedFolder(tmp_path / "store", "skip"), IDS, tmp_path / "cache")
    assert "i5" not in store.item_ids
    assert "Skipped i5" in caplog.text


def test_an_item_of_the_store_is_opened_like_one_of_a_file(tmp_path):
    embed(tmp_path / "store", Source())
    item = PackedFolder(tmp_path / "store").open("i3")
    assert (item.n_rows, item.d_in, item.spec) == (2, 3, SPEC)
    np.testing.assert_array_equal(np.concatenate(list(item.pieces())), [[3] * 3, [4] * 3])
