import numpy as np
import pytest
import torch

from src.data.slides.patch_embedder import PatchEmbedder
from tests.data.feeding.test_backbone_rows import Corner, read_patches

COORDS = np.arange(22).reshape(11, 2)
EXPECTED = np.column_stack([np.full(11, 3), COORDS])


def make_reader():
    asked = []

    def read(coords):
        asked.append(len(coords))
        return read_patches("3", coords)

    return read, asked


def test_no_more_patches_are_read_at_once_than_a_batch_has():
    read, asked = make_reader()
    backbone = Corner()
    np.testing.assert_array_equal(PatchEmbedder(backbone, 4).embed(read, COORDS), EXPECTED)
    assert asked == backbone.seen == [4, 4, 3]


def test_out_of_memory_halves_the_batch_of_all_later_slides():
    read, asked = make_reader()
    backbone = Corner(at_most=2)
    embedder = PatchEmbedder(backbone, 8)
    out = np.zeros((11, 3), dtype=np.float32)
    assert embedder.embed(read, COORDS, out) is out
    np.testing.assert_array_equal(out, EXPECTED)
    assert asked == [8, 3]
    embedder.embed(read, COORDS[:4])
    assert asked == [8, 3, 4]
    with pytest.raises(torch.cuda.OutOfMemoryError):
        PatchEmbedder(Corner(at_most=0), 2).embed(read, COORDS)
