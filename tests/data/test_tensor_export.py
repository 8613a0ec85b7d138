import numpy as np
import pytest
import torch

from src.data.readers.tensor_folder import TensorFolder
from src.stores.activations.tensor_export import export_tensor
from tests.data.stores import pack

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("suffix", ["pt", "npy"])
@pytest.mark.parametrize("n_rows", [1, 4])
def test_a_tensor_is_read_back_as_the_same_items(tmp_path, suffix, n_rows):
    bags = {f"i{number}": RNG.standard_normal((n_rows, 6)).astype(np.float32) for number in range(5)}
    ids, path = ["i3", "i0", "i4"], tmp_path / f"vit_2_train.{suffix}"
    shape = export_tensor(pack(tmp_path / "f", bags), ids, path, {"ids": ids, "labels": ["a", "b", "a"]})
    assert shape == ((3, 6) if n_rows == 1 else (3, n_rows, 6))
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == sorted(
        [path.name, "vit_2_train_ids.json", "vit_2_train_labels.json"]
    )
    beside = [{"train": tmp_path / f"vit_2_train_{name}.json"} for name in ("ids", "labels")]
    folder = TensorFolder({"train": path}, *beside)
    assert [(item.item_id, item.label) for item in folder.items] == [("i3", "a"), ("i0", "b"), ("i4", "a")]
    for item_id in ids:
        np.testing.assert_array_equal(np.concatenate(list(folder.open(item_id).pieces())), bags[item_id])


def test_a_pt_file_opens_with_weights_only(tmp_path):
    store = pack(tmp_path / "f", {"a": np.ones((1, 3), np.float32)})
    export_tensor(store, ["a"], tmp_path / "x.pt")
    assert torch.equal(torch.load(tmp_path / "x.pt", weights_only=True), torch.ones(1, 3))


def test_bags_of_different_sizes_are_refused(tmp_path):
    store = pack(tmp_path / "f", {"a": np.ones((1, 3)), "b": np.ones((2, 3))})
    with pytest.raises(ValueError, match="equally many rows for one tensor, got \\[1, 2\\]"):
        export_tensor(store, ["a", "b"], tmp_path / "x.pt")
