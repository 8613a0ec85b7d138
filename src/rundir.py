"""The one place that knows the names of files inside a run directory."""

import csv
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from src.files import digest_file, write_atomically
from src.records import FittedSlide, refuse_leakage
from src.report.page import Page, write_page

_LOGGER = logging.getLogger(__name__)


class RunDir:
    """A run directory: where each kind of file goes, and where the runs lie that this one builds on.

    Attributes:
        path: the directory.
    """

    def __init__(self, path: Path, locate: Callable[[str], Path] | None = None, command: str = "") -> None:
        """Describes a run directory; creates nothing.

        Args:
            path: the directory.
            locate: gives the directory of another task's run under the same configuration.
            command: the command line of this run without its task, for messages.
        """
        self.path = Path(path)
        self._locate = locate
        self._command = command
        self.inputs: dict[str, str] = {}
        self.upstreams: dict[str, str] = {}

    @property
    def config_path(self) -> Path:
        """The fully resolved configuration."""
        return self.path / "config.yaml"

    @property
    def manifest_path(self) -> Path:
        """What the run is, what it read and how it ended."""
        return self.path / "manifest.json"

    @property
    def log_path(self) -> Path:
        """Everything that was logged."""
        return self.path / "run.log"

    @property
    def metrics_path(self) -> Path:
        """Metrics by optimizer step."""
        return self.path / "metrics.csv"

    @property
    def results_path(self) -> Path:
        """Final scalars."""
        return self.path / "results.json"

    @property
    def page_path(self) -> Path:
        """The run's page of the report."""
        return self.path / "page.json"

    @property
    def report_path(self) -> Path:
        """The HTML report."""
        return self.path / "report.html"

    @property
    def lock_path(self) -> Path:
        """The sign that a process is at work."""
        return self.path / ".lock"

    @property
    def checkpoints_dir(self) -> Path:
        """What training resumes from."""
        return self.path / "checkpoints"

    @property
    def export_dir(self) -> Path:
        """The trained SAE for use elsewhere."""
        return self.path / "export"

    @property
    def fitted_on_path(self) -> Path:
        """The slides that the run fitted something on."""
        return self.path / "fitted_on.csv"

    @property
    def fitted_on_unknown_path(self) -> Path:
        """Why nobody knows what the run's SAE was fitted on; only runs that fitted nothing themselves have it."""
        return self.path / "fitted_on_unknown.txt"

    def latents_dir(self, feature_set: str = "all") -> Path:
        """Returns the folder of a latents store."""
        return self.path / "latents" / feature_set

    def table(self, name: str) -> Path:
        """Returns the path of a table, its folder made."""
        return self._made(self.path / "analysis" / f"{name}.csv")

    def plot(self, name: str) -> Path:
        """Returns the path of a figure, its folder made."""
        return self._made(self.path / "plots" / f"{name}.png")

    def read_manifest(self) -> dict[str, Any] | None:
        """Returns the manifest, or None when the run never started."""
        return json.loads(self.manifest_path.read_text()) if self.manifest_path.is_file() else None

    def read_results(self) -> dict[str, float]:
        """Returns the final scalars of a finished run."""
        return json.loads(self.results_path.read_text())

    @property
    def is_finished(self) -> bool:
        """Whether the run completed."""
        manifest = self.read_manifest()
        return manifest is not None and manifest["status"] == "completed"

    def write_json(self, path: Path, content: Any) -> None:
        """Writes JSON, whole or not at all."""
        with write_atomically(path) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")

    def write_page(self, page: Page) -> None:
        """Adds the run's page to the report."""
        write_page(page, self.page_path)

    def record_input(self, path: str | Path, digest: str | None = None) -> None:
        """Notes a file or folder that the run read; a file's digest is computed when not given."""
        path = Path(path)
        if digest is None:
            digest = digest_file(path) if path.is_file() else ""
        self.inputs[str(path)] = digest

    def upstream(self, task: str) -> "RunDir":
        """Returns the finished run of another task under the same configuration, and notes it in the manifest.

        Raises:
            FileNotFoundError: when there is none, naming the directory and the command that makes it.
        """
        found = self.optional_upstream(task)
        if found is None:
            path = self._path_of(task)
            raise FileNotFoundError(
                f"Expected a finished {task} run at {path}, found none. Make it with: {self._command} task={task}"
            )
        return found

    def optional_upstream(self, task: str) -> "RunDir | None":
        """Returns the finished run of another task under the same configuration, None when there is none."""
        found = RunDir(self._path_of(task), self._locate, self._command)
        if not found.is_finished:
            return None
        self.upstreams[task] = digest_file(found.manifest_path)
        return found

    def upstream_folds(self, task: str) -> "dict[int, RunDir]":
        """Returns the finished runs of a per-fold task under the same configuration, by fold, in order."""
        runs = self._path_of(task).parent.parent
        found = {
            int(path.parent.name.removeprefix("fold_")): RunDir(path, self._locate, self._command)
            for path in runs.glob(f"fold_*/{task}")
        }
        return {fold: run for fold, run in sorted(found.items()) if run.is_finished}

    def write_fitted_on(self, slides: Iterable[FittedSlide]) -> None:
        """Lists the slides that this run fitted something on."""
        with write_atomically(self.fitted_on_path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("slide_id", "case_id", "digest", "n_patches"))
            writer.writerows((slide.slide_id, slide.case_id, slide.digest, slide.n_patches) for slide in slides)

    def write_fitted_on_unknown(self, reason: str) -> None:
        """Says that what this run holds was fitted elsewhere, on slides that are not known."""
        with write_atomically(self.fitted_on_unknown_path) as temporary:
            temporary.write_text(reason + "\n")

    def read_fitted_on(self) -> list[FittedSlide]:
        """Returns the slides that this run fitted something on.

        Raises:
            FileNotFoundError: when the run does not say.
        """
        if not self.fitted_on_path.is_file():
            raise FileNotFoundError(
                f"Expected the list of slides that {self.path} was fitted on at {self.fitted_on_path}, found none: "
                "leakage cannot be ruled out. Run it again with overwrite=true."
            )
        with open(self.fitted_on_path, newline="") as file:
            return [
                FittedSlide(row["slide_id"], row["case_id"], row["digest"], int(row["n_patches"]))
                for row in csv.DictReader(file)
            ]

    def refuse_leakage(self, upstream: "RunDir", held_out: Sequence[FittedSlide]) -> None:
        """Refuses an upstream run that was fitted on slides or cases that this run holds out.

        Where the upstream run says that its training slides are not known (an imported SAE), leakage cannot be ruled
        out and a warning says so.

        Raises:
            FileNotFoundError: when the upstream run says nothing.
            ValueError: naming the first slide, case or copy that both have.
        """
        if upstream.fitted_on_unknown_path.is_file():
            reason = upstream.fitted_on_unknown_path.read_text().strip()
            _LOGGER.warning("Leakage cannot be ruled out for %s: %s", upstream.path, reason)
            return
        for twins in refuse_leakage(upstream.read_fitted_on(), held_out, f"the run {upstream.path}"):
            _LOGGER.warning("Tiny bags with equal activations on both sides of the split: %s.", twins)

    def _path_of(self, task: str) -> Path:
        if self._locate is None:
            raise ValueError(f"Expected {self.path} to know where the runs of {task} lie; give `locate`.")
        return self._locate(task)

    @staticmethod
    def _made(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
