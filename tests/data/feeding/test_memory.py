"""Anonymous memory does not grow with the store, the slides or the width of the rows."""

import sys

import pytest

from tests.memory import GIB, run_script

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells anonymous memory"),
]

ROWS = """
import sys, time, types
import numpy as np, torch
from tests.memory import peak_above_start
torch.set_num_threads(1)
folder, n_rows, d_in = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rows = np.lib.format.open_memmap(f"{folder}/rows.npy", "w+", np.float32, (n_rows, d_in))  # zeros
"""

FEED = (
    ROWS
    + """
from src.data.feeding.activations import ActivationDataModule
from src.data.feeding.rows import RowSource

class Mapped(RowSource):
    dtype, slide_starts, identity = rows.dtype, np.array([0]), "mapped"
    n_rows, d_in = rows.shape

    def read(self, start, stop):
        return rows[start:stop]

class NoRows(Mapped):
    n_rows = 0

data = ActivationDataModule(Mapped(), NoRows(), 4096, 16, 0, residency="mmap", n_workers=2)
seen = []

def train():
    for block in data.train_dataloader():
        time.sleep(0.02)  # so that all that may be read ahead is
        seen.append(sum(len(batch) for batch in block))

peak = peak_above_start(train)
assert sum(seen) == n_rows
print(peak)
"""
)

ENCODE = (
    ROWS
    + """
from src.models.saes.topk import TopK
from src.stores.latents import writer as writers
from src.stores.latents.encoded import EncodedLatents
from src.stores.latents.index import LatentItem
from src.tasks import encode

noise = np.random.default_rng(0).standard_normal((4096, d_in), dtype=np.float32)
for start in range(0, n_rows, 4096):
    rows[start : start + 4096] = noise[: n_rows - start]
rows.flush()
torch.manual_seed(0)
sae = TopK(d_in, 512, k=256).eval()  # many latents: they fill several shards
with torch.no_grad():
    sae.encode(torch.zeros(8, d_in))
writers.SHARD_BYTES = 64 << 20
coords = np.zeros((n_rows, 2), np.int32)
items = [LatentItem("slide", 0, n_rows, "digest", 256)]
source = EncodedLatents(sae, items, rows.__getitem__, lambda item_id: coords)
peaks, stores = [], []
for n_kept in (0, n_rows):
    def write():
        writer = writers.LatentWriter(f"{folder}/latents", 512, items, "made by")
        assert writer.n_kept_rows == n_kept
        measures = encode._Measures(sae, [("test", n_rows)])
        source.write(writer, encode.batch_rows(sae), measures.update)
        stores.append(writer.finish())
    peaks.append(peak_above_start(write))
assert sum(latents.n_entries for _, latents in stores[-1].read(["slide"])) > 200 * n_rows
print(max(peaks))
"""
)


@pytest.mark.parametrize(("n_rows", "d_in"), [(366_000, 1024), (90_000, 4096)])
def test_feeding_a_mapped_store(tmp_path, n_rows, d_in):
    assert 0.3 * GIB < run_script(FEED, tmp_path, n_rows, d_in) < 0.9 * GIB


def test_encoding_a_large_slide(tmp_path):
    """120,000 patches of 1024 values are 0.5 GB, and 256 latents each another 0.2 GB."""
    assert run_script(ENCODE, tmp_path, 120_000, 1024) < 0.3 * GIB
