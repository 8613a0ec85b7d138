"""Starts what logs a run to W&B: a process of its own, so that nothing that W&B does can stop or slow the run."""

import atexit
import json
import logging
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from src.runs.rundir import RunDir

_LOGGER = logging.getLogger(__name__)
_MODULE = "src.runs.wandb_upload"
_FILE = "wandb.json"
# Seconds that a command waits at its end where the uploads could not go on without it, or need no network.
_USUAL_WAIT = 60.0
_POLL_SECONDS = 0.1


@dataclass
class Tracked:
    """What W&B runs a run directory has; kept in it, so that a resumed run continues them and one made anew does not.

    Attributes:
        id: that the ids of its W&B runs begin with.
        parts: names of models that share the directory, each of which has a W&B run.
    """

    id: str
    parts: list[str]


@dataclass
class _Upload:
    process: "subprocess.Popen[bytes]"
    log_path: Path
    deadline: float = 0.0


_UPLOADS: list[_Upload] = []


def read_tracked(path: Path) -> Tracked:
    """Returns what is noted in a run directory."""
    return Tracked(**json.loads((path / _FILE).read_text()))


def note_part(rundir: RunDir, part: str) -> None:
    """Gives a model that shares a run's directory a W&B run of its own, where the run is tracked."""
    if (rundir.path / _FILE).is_file():
        tracked = read_tracked(rundir.path)
        if part not in tracked.parts:
            rundir.write_json(rundir.path / _FILE, asdict(Tracked(tracked.id, [*tracked.parts, part])))


@contextmanager
def tracking(cfg: Any, rundir: RunDir) -> Iterator[None]:
    """Logs a run to W&B while the block runs, when the configuration asks for it.

    Another process reads the run directory and does it; it hears of the end, or death, of this process by the end of a
    pipe. It is not waited for, but at the end of the command for `logger.wandb.wait` seconds.
    """
    if "wandb" not in cfg.logger:
        yield
        return
    options = cfg.logger.wandb
    if not (rundir.path / _FILE).is_file():
        rundir.write_json(rundir.path / _FILE, asdict(Tracked(uuid.uuid4().hex[:16], [])))
    upload = None if options.offline else _try_to_start(cfg, rundir)
    seconds = 0.0  # a process that is asked to end does so at once
    try:
        yield
        seconds = _wait_seconds(options)
    except Exception:
        seconds = _wait_seconds(options)
        raise
    finally:
        upload = upload or _try_to_start(cfg, rundir)
        if upload is not None:
            upload.process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess] - a pipe
            upload.deadline = time.monotonic() + seconds


def _try_to_start(cfg: Any, rundir: RunDir) -> _Upload | None:
    """Starts the process; where that cannot be, a warning says so, and the run goes on."""
    try:
        return _start(cfg, rundir)
    except OSError as error:
        _LOGGER.warning("W&B is not told of the run: %s", error)
        return None


def _start(cfg: Any, rundir: RunDir) -> _Upload:
    if not _UPLOADS:
        atexit.register(_wait_for_uploads)
    runs = Path(cfg.paths.runs).absolute()
    log_path = runs / "wandb" / f"{read_tracked(rundir.path).id}.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    options = {key: cfg.logger.wandb[key] for key in ("project", "entity", "offline")} | {"is_refused": False}
    command = [sys.executable, "-m", _MODULE, str(rundir.path.absolute()), str(runs), json.dumps(options)]
    with open(log_path, "ab") as log:
        # A session of its own: Ctrl-C is for the run alone.
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    _UPLOADS.append(_Upload(process, log_path))
    return _UPLOADS[-1]


def _wait_seconds(options: Any) -> float:
    if options.wait is not None:
        return options.wait
    return _USUAL_WAIT if options.offline or "SLURM_JOB_ID" in os.environ else 0.0


def _wait_for_uploads() -> None:
    """Waits, at the end of the command, for what is still being uploaded, and says what was not."""
    for upload in _UPLOADS:
        while upload.process.poll() is None and time.monotonic() < upload.deadline:
            time.sleep(_POLL_SECONDS)
        if upload.process.returncode:
            _LOGGER.warning("W&B was not reached, and the run is done all the same; see %s", upload.log_path)
        elif upload.process.returncode is None:
            _LOGGER.info("Still uploading to W&B; its log: %s", upload.log_path)
            upload.process.returncode = 0  # else Python complains of a process that it did not wait for
