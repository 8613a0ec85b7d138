"""What SLURM's commands say, read into states; the commands are scripts of the test's."""

import pytest

from src.runs.slurm_queue import ended_states, read_queue


@pytest.fixture
def site(tmp_path, monkeypatch):
    def install(**scripts):
        for name, script in scripts.items():
            path = tmp_path / name
            path.write_text(f"#!/bin/bash\n{script}\n")
            path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("shutil.which", lambda name: str(tmp_path / name) if (tmp_path / name).exists() else None)
    return install


def test_jobs_of_arrays_are_found_under_both_their_ids(site):
    lines = ["12_0|13|RUNNING|None", "12_3|14|PENDING|BeginTime", "12_1|12|PENDING|Resources"]
    lines += ["12_2|12|PENDING|Resources", "20|20|PENDING|Dependency"]
    site(squeue="\n".join(f"echo '{line}'" for line in lines))
    queue = read_queue()
    assert queue is not None
    assert {job_id: (job.state, job.reason, job.waits) for job_id, job in queue.items()} == {
        "12_0": ("RUNNING", "", False),
        "13": ("RUNNING", "", False),
        "12_3": ("PENDING", "BeginTime", True),  # put back into the queue
        "14": ("PENDING", "BeginTime", True),
        "12_1": ("PENDING", "Resources", True),
        "12_2": ("PENDING", "Resources", True),
        "20": ("PENDING", "Dependency", True),
    }


def test_a_controller_that_does_not_answer_is_not_an_empty_queue(site):
    assert read_queue() is None  # no SLURM here
    site(squeue="echo 'Unable to contact slurm controller' >&2; exit 1")
    assert read_queue() is None
    site(squeue="exit 0")
    assert read_queue() == {}


def test_how_jobs_ended_is_asked_of_accounting_and_else_of_the_controller(site):
    site(sacct="echo '12_0|13|CANCELLED by 0'; echo '12_1|12|FAILED'; echo '12_1|12|COMPLETED'")
    assert ended_states({"12_0", "12", "99"}) == {"12_0": "CANCELLED by 0", "12": "COMPLETED"}
    site(sacct="exit 1", scontrol='[ "$3" = 12_0 ] && echo "JobId=13 JobState=TIMEOUT Reason=TimeLimit"')
    assert ended_states({"12_0", "12_1"}) == {"12_0": "TIMEOUT"}
    assert ended_states(set()) == {}
