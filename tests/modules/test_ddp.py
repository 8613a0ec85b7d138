import functools

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from tests.modules.shared_batches import CASES, train


def _train_all(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save({name: train(name) for name in CASES}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_processes")
    torch.multiprocessing.spawn(_train_all, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@functools.cache
def _trained_by_one(name):
    return train(name)


def _deviation(one, other):
    one, other = one.double(), other.double()
    scale = one.abs().max().clamp_min(1e-300) if one.numel() else 1
    return float(((one - other).abs().max() / scale) if one.numel() else 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_what_one_trains(trained_by_two, name):
    state, steps = _trained_by_one(name)
    for other_state, other_steps in (results[name] for results in trained_by_two):
        for number, (mine, others) in enumerate(zip(steps, other_steps, strict=True)):
            assert torch.equal(mine[0], others[0]), f"step {number}: other latents"
            assert torch.equal(mine[2], others[2]), f"step {number}: other neurons are silent"
            assert mine[1].keys() == others[1].keys()
            for key, value in mine[1].items():
                assert _deviation(value, others[1][key]) < 1e-9, f"step {number}: {key}"
        for key, value in state.items():
            assert _deviation(value, other_state[key]) < 1e-9, key
