import pytest
import torch

from src.data.feeding.residency import choose_residency, free_gpu, free_ram

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
    assert free_ram(proc=proc, cgroups=cgroups) is None
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


def test_limits_of_version_1_and_of_both_versions_together(tmp_path):
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    write(proc / "meminfo", "MemAvailable: 200 kB\n")
    write(proc / "self" / "cgroup", "9:cpu,cpuacct:/slurm/job\n4:hugetlb,memory:/slurm/job/step\n0::/\n")
    step, job = cgroups / "memory" / "slurm" / "job" / "step", cgroups / "memory" / "slurm" / "job"
    write(step / "memory.limit_in_bytes", "9223372036854771712\n")  # no limit
    write(step / "memory.usage_in_bytes", "5000\n")
    assert free_ram(proc=proc, cgroups=cgroups) == 200 * 1024
    write(job / "memory.limit_in_bytes", "100000\n")
    write(job / "memory.usage_in_bytes", "70000\n")
    write(job / "memory.stat", "inactive_file 7\ntotal_inactive_file 20000\n")
    assert free_ram(proc=proc, cgroups=cgroups) == 50000
    write(cgroups / "memory.max", "40000\n")
    write(cgroups / "memory.current", "10000\n")
    assert free_ram(proc=proc, cgroups=cgroups) == 30000


def test_container_whose_path_is_the_hosts(tmp_path):
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    write(proc / "meminfo", "MemAvailable: 200 kB\n")
    write(proc / "self" / "cgroup", "4:memory:/docker/0123\n")
    write(cgroups / "memory" / "memory.limit_in_bytes", "90000\n")
    write(cgroups / "memory" / "memory.usage_in_bytes", "60000\n")
    assert free_ram(proc=proc, cgroups=cgroups) == 30000


def test_system_that_does_not_say_its_free_memory_maps():
    assert choose_residency("auto", 1, None, None) == ("mmap", "the system does not say how much memory is free")
    assert choose_residency("auto", 1, None, 10)[0] == "gpu"


def test_free_memory_of_this_machine():
    assert (free_ram() or 0) > 0
    assert free_gpu(torch.device("cpu")) is None
