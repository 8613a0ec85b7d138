"""Logs a run directory to W&B, in a process of its own that `src.runs.tracking` starts.

It reads files alone, and knows the process of the run by a pipe, its standard input, which ends when that process does.
By hand, `python -m src.runs.wandb_upload <run directory>` sends what W&B does not have yet of a run that was logged.
"""

import json
import logging
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

from src.file_lock import wait_for_lock
from src.files import digest_text, read_yaml
from src.report.page import Page, read_page
from src.runs.rundir import RunDir
from src.runs.tracked_metrics import WHOLE, Rows, read_metrics, values_within
from src.runs.tracking import read_tracked

_LOGGER = logging.getLogger(__name__)
_POLL_SECONDS = 5.0
# After the run's end; then what is not sent stays in the folder of W&B's files, for `wandb sync`.
_PATIENCE_SECONDS = 600.0
_MOST_ROWS, _MOST_FILES = 10_000, 1_000
_LONGEST_GROUP = 128  # characters that W&B takes
_NICENESS = 10


def main() -> int:
    """Follows a run and returns an exit code: 1 where W&B took nothing and all was written offline."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    rundir = RunDir(Path(sys.argv[1]).absolute())
    if len(sys.argv) > 2:
        runs, options = Path(sys.argv[2]), json.loads(sys.argv[3])
    else:  # by hand
        config = read_yaml(rundir.config_path)
        runs, options = Path(config["paths"]["runs"]).absolute(), config["logger"]["wandb"] | {"is_refused": False}
    os.nice(_NICENESS)
    os.environ.pop("WANDB_SERVICE", None)  # which serves W&B in the process that started this one, and ends with it
    ended = threading.Event()
    threading.Thread(target=_wait_for_end, args=(ended,), daemon=True).start()
    try:
        with wait_for_lock(runs / "wandb" / f"{read_tracked(rundir.path).id}.lock", "uploading"):
            upload(rundir, runs, options, ended)
    except Exception:  # its server, its account, its own service: the run is to be kept in any case
        if options["offline"]:
            raise
        _LOGGER.warning("W&B did not take the run, which is written offline instead.", exc_info=True)
        # As a new program: what W&B began here is still at it.
        again = json.dumps(options | {"offline": True, "is_refused": True})
        os.execv(sys.executable, [sys.executable, "-m", "src.runs.wandb_upload", str(rundir.path), str(runs), again])
    return int(options["is_refused"])


def upload(rundir: RunDir, runs: Path, options: dict[str, Any], ended: threading.Event) -> None:
    """Sends what a run has logged as it comes, and at its end the rest; offline all at its end.

    Args:
        rundir: the run's directory.
        runs: the folder of all runs; W&B's own files are in `wandb/` below it.
        options: `project`, `entity`, `offline`.
        ended: set when the run has ended.

    Raises:
        wandb.Error: when W&B does not answer, or refuses; and whatever else W&B raises.
    """
    identity = read_tracked(rundir.path).id
    opened: dict[str, Any] = {}
    has_ended = False
    while not has_ended:
        has_ended = ended.wait(None if options["offline"] else _POLL_SECONDS)
        tracked = read_tracked(rundir.path)
        if tracked.id != identity:
            _LOGGER.warning("The run was started over; what it was before is not followed any more.")
            return
        manifest = rundir.read_manifest() or {}
        is_final = has_ended and manifest.get("status") in ("completed", "failed")
        for part in (WHOLE, *tracked.parts):
            rows = read_metrics(rundir.metrics_path, part, tracked.parts)
            if part not in opened and (rows or has_ended):
                opened[part] = _open(rundir, runs, identity, part, options)
            if part in opened:
                _log_rows(opened[part], rows, is_final)
    results = rundir.read_results() if rundir.results_path.is_file() else {}
    for part, run in opened.items():
        run.summary.update(values_within(results, part, tracked.parts) if part != WHOLE else results)
        if part == WHOLE:
            _log_page(run, rundir)
            _log_artifact(run, rundir, manifest)
        run.finish(exit_code=0 if manifest.get("status") == "completed" else 1)
        if options["offline"]:
            _remove_earlier(runs, run.id)
            _LOGGER.info("Written offline. To upload: cd %s && wandb sync wandb/offline-run-*-%s", runs, run.id)


def _log_rows(run: Any, rows: Rows, is_final: bool) -> None:
    """Logs the rows that a W&B run does not have, also not from before a restart.

    The last row is left until another one follows or the run has ended: it may be added to. At the end it stays open,
    for what is shown then.
    """
    for number, (step, values) in enumerate(rows if is_final else rows[:-1]):
        if step >= run.step:
            run.log(values, step=step, commit=number < len(rows) - 1)


def _open(rundir: RunDir, runs: Path, identity: str, part: str, options: dict[str, Any]) -> Any:
    import wandb

    config = read_yaml(rundir.config_path)
    place = rundir.path.relative_to(runs).parts if rundir.path.is_relative_to(runs) else rundir.path.parts[-4:]
    return wandb.init(
        project=options["project"],
        entity=options["entity"],
        mode="offline" if options["offline"] else "online",
        dir=str(runs),
        id=f"{identity}-{digest_text(part, 8)}" if part else identity,
        resume="allow",
        reinit="create_new",
        group="/".join(place[:2])[:_LONGEST_GROUP],  # name and variant
        name="/".join([*place[2:], *([part] if part else [])]),
        job_type=config["task"]["name"],
        config=config,
        settings=wandb.Settings(console="off", x_stats_pid=os.getppid()),
    )


def _log_page(run: Any, rundir: RunDir) -> None:
    """Logs the figures and tables of the run's page."""
    import pandas as pd
    import wandb

    page = read_page(rundir.page_path) if rundir.page_path.is_file() else Page("")
    shown: dict[str, Any] = {}
    for figure in page.figures:
        shown[f"plots/{Path(figure.path).stem}"] = wandb.Image(str(rundir.path / figure.path), caption=figure.caption)
    for table in page.tables:
        rows = pd.read_csv(rundir.path / table.path, nrows=_MOST_ROWS)
        shown[f"analysis/{Path(table.path).stem}"] = wandb.Table(dataframe=rows)
    if shown:
        run.log(shown)


def _log_artifact(run: Any, rundir: RunDir, manifest: dict[str, Any]) -> None:
    """Logs the run's results by reference: where they lie and their digests; nothing is uploaded."""
    import wandb

    outputs = [output for output in manifest.get("outputs", []) if output["digest"]][:_MOST_FILES]
    if not outputs:
        return
    digests = {output["path"]: output["digest"] for output in outputs}
    metadata = {"run": str(rundir.path), "digest": manifest["digest"], "digests": digests}
    artifact = wandb.Artifact(f"{rundir.path.name}-{run.id}", rundir.path.name, metadata=metadata)
    for name in digests:
        artifact.add_reference((rundir.path / name).as_uri(), name, checksum=False)
    run.log_artifact(artifact)


def _remove_earlier(runs: Path, run_id: str) -> None:
    """Removes what earlier starts of a run wrote offline: the last has all of it."""
    *earlier, _ = sorted((runs / "wandb").glob(f"offline-run-*-{run_id}"))
    for folder in earlier:
        shutil.rmtree(folder)


def _wait_for_end(ended: threading.Event) -> None:
    if not sys.stdin.isatty():
        sys.stdin.buffer.read()
    ended.set()
    watchdog = threading.Timer(_PATIENCE_SECONDS, _give_up)
    watchdog.daemon = True
    watchdog.start()


def _give_up() -> None:
    _LOGGER.error(
        "W&B has not taken all within %g s. What is left: `wandb sync` of the run's folder.", _PATIENCE_SECONDS
    )
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
