import pytest
import torch

from src.data.residency import choose_residency, free_gpu, free_ram

GIB = 2**30


@pytest.mark.parametrize(
    ("requested", "n_bytes", "free", "expected"),
    [
        ("auto", 4 * GIB, (100 * GIB, 10 * GIB), "gpu"),
        ("auto", 6 * GIB, (100 * GIB, 10 * GIB), "ram"),
        ("auto", 6 * GIB, (12 * GIB, None), "ram"),
        ("auto", 6 * GIB, (11 * GIB, None), "mmap"),
        ("mmap", 1, (100 * GIB, None), "mmap"),
        ("ram", 200 * GIB, (100 * GIB, None), "ram"),
        ("stream", 1, (100 * GIB, 100 * GIB), "stream"),
        ("gpu", 1, (0, 0), "gpu"),
    ],
)
def test_by_size_and_free_memory(requested, n_bytes, free, expected):
    assert choose_residency(requested, n_bytes, *free)[0] == expected


def test_reason():
    reason = choose_residency("auto", 1, 3 * GIB, None)[1]
    assert reason == "they take at most half of the 3.0 GiB of free memory"


def test_computed_rows_stream():
    assert choose_residency("auto", 1, GIB, GIB, is_computed=True)[0] == "stream"


def test_refused():
    with pytest.raises(ValueError, match="one of auto, gpu, ram, mmap, stream, got 'disk'"):
        choose_residency("disk", 1, 1, 1)
    with pytest.raises(ValueError, match="Expected a CUDA device"):
        choose_residency("gpu", 1, GIB, None)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_free_memory_is_what_the_system_and_the_cgroups_leave(tmp_path):
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    with pytest.raises(FileNotFoundError, match="Expected the free memory in"):
        free_ram(proc=proc, cgroups=cgroups)
    write(proc / "meminfo", "MemTotal: 300 kB\nMemAvailable:    200 kB\n")
    assert free_ram(proc=proc, cgroups=cgroups) == 200 * 1024
    assert free_ram(4, proc, cgroups) == 50 * 1024
    write(proc / "self" / "cgroup", "0::/job/step\n")
    write(cgroups / "job" / "step" / "memory.max", "max\n")
    write(cgroups / "job" / "step" / "memory.current", "5000\n")
    write(cgroups / "job" / "memory.max", "100000\n")
    write(cgroups / "job" / "memory.current", "70000\n")
    assert free_ram(proc=proc, cgroups=cgroups) == 30000
    write(cgroups / "job" / "memory.stat", "anon 1\ninactive_file 20000\n")
    assert free_ram(proc=proc, cgroups=cgroups) == 50000


def test_free_memory_of_this_machine():
    assert free_ram() > 0
    assert free_gpu(torch.device("cpu")) is None
