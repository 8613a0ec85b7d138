import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from src.ops.processes import (
    all_counts,
    all_max,
    all_min,
    all_sum,
    all_sum_gradients_,
    gather_rows,
    mean_over_rows,
    n_processes,
    rank,
)
from src.ops.selection import keep_largest, keep_largest_of_all, smallest_of_all
from src.ops.sparse_latents import SparseLatents

N_PROCESSES = 3
# Rows of each process of a batch, one without any.
N_ROWS = (4, 0, 3)
N_KEPT = 11


def _rows():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(sum(N_ROWS), 5, generator=generator, dtype=torch.float64)


def _latents():
    """Returns latents [7, 5] of few distinct values: the smallest kept one is tied across processes."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 5, (sum(N_ROWS), 5), generator=generator).double()


def _mine(rows):
    return rows.split(N_ROWS)[rank()]


def _loss(rows, weights):
    """Returns a loss that is not linear in a mean over all rows."""
    return mean_over_rows((rows * weights).square().sum(), len(rows)).square() + all_sum(rows.sum() * weights.sum())


def _results(rows, latents):
    """Returns what every function gives for this process's rows."""
    weights = torch.arange(5, dtype=torch.float64, requires_grad=True)
    others = torch.ones(2, dtype=torch.float32, requires_grad=True)
    unused = torch.ones(1, requires_grad=True)
    loss = _loss(rows, weights)
    (loss + others.sum() * len(rows)).backward()
    all_sum_gradients_([weights, others, unused])
    return {
        "loss": loss.detach(),
        "gradient": weights.grad,
        "float gradient": others.grad,
        "no gradient": unused.grad,
        "rows": gather_rows(rows),
        "images": gather_rows(rows.view(-1, 5, 1)),
        "mean of none": mean_over_rows(torch.zeros(()), 0),
        "bfloat16": mean_over_rows(torch.full((), 0.5 * len(rows), dtype=torch.bfloat16), len(rows)),
        "counts": all_counts(len(rows), 2 * len(rows), like=rows),
        "max": all_max(torch.tensor([rank(), -rank()])),
        "min": all_min(torch.tensor([rank(), -rank()])),
        "kept": [gather_rows(_kept(latents, n_kept)) for n_kept in (N_KEPT, 1, 1000)],
        "smallest": smallest_of_all(latents.values),
        "smallest of none": smallest_of_all(latents.values[:0]),
    }


def _kept(latents, n_kept):
    return keep_largest_of_all(latents, n_kept).to_dense()


def _work(process, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=process, world_size=N_PROCESSES)
    results = _results(_mine(_rows()), SparseLatents.from_dense(_mine(_latents())))
    torch.save(results | {"n_processes": n_processes(), "rank": rank()}, folder / f"{process}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(_work, (folder,), nprocs=N_PROCESSES)
    return [torch.load(folder / f"{process}.pt") for process in range(N_PROCESSES)]


@pytest.mark.slow
def test_several_processes_give_what_one_gives(results):
    expected = _results(_rows(), SparseLatents.from_dense(_latents()))
    for process, given in enumerate(results):
        assert (given["n_processes"], given["rank"]) == (N_PROCESSES, process)
        assert given["max"].tolist() == [N_PROCESSES - 1, 0]
        assert given["min"].tolist() == [0, 1 - N_PROCESSES]
        assert given["counts"] == (7, 14)
        assert given["bfloat16"].item() == 0.5
        assert given["bfloat16"].dtype == torch.float32
        assert given["no gradient"] is None
        for name in ("rows", "images", "mean of none", "smallest", "smallest of none", "float gradient"):
            assert torch.equal(given[name], expected[name]), name
        for name in ("loss", "gradient"):
            torch.testing.assert_close(given[name], expected[name], rtol=1e-14, atol=0)
        for kept, of_one in zip(given["kept"], expected["kept"], strict=True):
            assert torch.equal(kept, of_one)


def test_the_planted_ties_are_split_between_processes():
    latents = _latents()
    kept = keep_largest(SparseLatents.from_dense(latents), N_KEPT).to_dense()
    smallest = kept[kept > 0].min()
    tied, kept_of_tied = ((values == smallest).split(N_ROWS) for values in (latents, kept))
    assert int((kept > 0).sum()) == N_KEPT
    assert any(bool(one.any()) and not bool(other.any()) for one, other in zip(tied, kept_of_tied, strict=True))
    assert any(bool(one.any()) for one in kept_of_tied)


def test_one_process_gets_its_own_back():
    rows = torch.ones(2, 3, requires_grad=True)
    for function in (all_sum, all_max, all_min, gather_rows):
        assert function(rows) is rows
    assert all_counts(3, 4, like=rows) == (3, 4)
    assert (n_processes(), rank()) == (1, 0)
    assert float(mean_over_rows(rows.sum(), 2).detach()) == 3
