"""The one place that knows the names of files inside a run directory."""

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from src.files import read_json_object, write_atomically
from src.fitted_on import FILE as FITTED_ON_FILE
from src.fitted_on import read_fitted_on, refuse_leakage, write_fitted_on
from src.inputs import RUN, Input, read_inputs, write_inputs
from src.records import FittedItem
from src.report.page import Page, PageFigure, PageTable, write_page
from src.runs.identity import Draw, draws_of, folds_of

_LOGGER = logging.getLogger(__name__)
_START_OVER = "It was cut short or edited: start the run over with overwrite=true."
_FOLD_DIR = re.compile(r"fold_([^_]+)(_.*)?")


class RunDir:
    """A run directory: where each kind of file goes, and where the runs lie that this one builds on.

    Attributes:
        path: the directory.
        config_path: the fully resolved configuration.
        manifest_path: what the run is, what it read and how it ended.
        inputs_path: what the run read, with digests.
        log_path: everything that was logged.
        metrics_path: metrics by optimizer step.
        results_path: final scalars.
        page_path: the run's page of the report.
        report_path: the HTML report.
        lock_path: the sign that a process is at work.
        checkpoints_dir: what training resumes from.
        export_dir: the trained SAE for use elsewhere.
        fitted_on_path: the slides that the run fitted something on.
        fitted_on_unknown_path: why nobody knows what the run's SAE was fitted on; of runs that fitted nothing alone.
        left_out: directories of runs of other folds that are not to be read, being out of date, with the reason.
        replaces: whether the run takes the place of one made from other inputs.
    """

    def __init__(
        self, path: Path, locate: Callable[[str], Path] | None = None, command: str = "", is_begun: bool = True
    ) -> None:
        """Describes a run directory; creates nothing.

        Args:
            path: the directory.
            locate: gives the directory of another task's run under the same configuration.
            command: the command line of this run without its task, for messages.
            is_begun: whether what is read is noted in the directory; not yet when a run is only looked at.
        """
        self.path = Path(path)
        self.config_path = self.path / "config.yaml"
        self.manifest_path = self.path / "manifest.json"
        self.inputs_path = self.path / "inputs.csv"
        self.log_path = self.path / "run.log"
        self.metrics_path = self.path / "metrics.csv"
        self.results_path = self.path / "results.json"
        self.page_path = self.path / "page.json"
        self.report_path = self.path / "report.html"
        self.lock_path = self.path / ".lock"
        self.checkpoints_dir = self.path / "checkpoints"
        self.export_dir = self.path / "export"
        self.fitted_on_path = self.path / FITTED_ON_FILE
        self.fitted_on_unknown_path = self.path / "fitted_on_unknown.txt"
        self._locate = locate
        self._command = command
        self.is_begun = is_begun
        self._inputs: dict[tuple[str, str], Input] = {}
        self._tables: list[PageTable] = []
        self._figures: list[PageFigure] = []
        self.left_out: Mapping[Path, str] = {}
        self.replaces = False

    @property
    def own_paths(self) -> set[Path]:
        """What the run keeps for itself: no results."""
        return {self.lock_path, self.log_path, self.inputs_path}

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
        """Returns the manifest, or None when the run never started.

        Raises:
            ValueError: when it is damaged.
        """
        manifest = read_json_object(self.manifest_path, _START_OVER) if self.manifest_path.is_file() else None
        if manifest is not None and not {"status", "schema_version"} <= manifest.keys():
            raise ValueError(
                f"Expected the manifest of a run at {self.manifest_path}, got the keys {sorted(manifest)}. "
                + _START_OVER
            )
        return manifest

    def read_results(self) -> dict[str, float]:
        """Returns the final scalars of a finished run.

        Raises:
            FileNotFoundError, ValueError: when the file is missing or damaged.
        """
        return read_json_object(self.results_path, _START_OVER)

    @property
    def is_finished(self) -> bool:
        """Whether the run completed."""
        manifest = self.read_manifest()
        return manifest is not None and manifest["status"] == "completed"

    @property
    def has_partial_work(self) -> bool:
        """Whether the directory holds what an unfinished run would go on from."""
        return self.checkpoints_dir.is_dir() or self.latents_dir().is_dir()

    @property
    def fold(self) -> int | str | None:
        """The fold that the directory belongs to (a number or `all`), None for runs over all folds."""
        match = _FOLD_DIR.fullmatch(self.path.parent.name)
        if match is None:
            return None
        return int(match.group(1)) if match.group(1).isdigit() else match.group(1)

    def write_json(self, path: Path, content: Any) -> None:
        """Writes JSON, whole or not at all."""
        with write_atomically(path) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")

    def add_table(
        self, name: str, table: Any, caption: str, max_rows: int = 20, columns: Sequence[str] | None = None
    ) -> None:
        """Writes a DataFrame as `analysis/<name>.csv`, and adds it to the run's page; see `PageTable`."""
        with write_atomically(self.table(name)) as temporary:
            table.to_csv(temporary, index=False)
        self._tables.append(PageTable(self.table(name), caption, max_rows, columns))

    def add_figure(self, name: str, figure: Any, caption: str) -> None:
        """Writes a Figure as `plots/<name>.png`, and adds it to the run's page."""
        from src.analysis.figure_style import save_figure  # with matplotlib

        save_figure(figure, self.plot(name))
        self._figures.append(PageFigure(self.plot(name), caption))

    def write_page(self, page: Page) -> None:
        """Adds the run's page to the report, with the tables and figures that were added before."""
        figures, tables = (*page.figures, *self._figures), (*page.tables, *self._tables)
        write_page(replace(page, figures=figures, tables=tables), self.page_path)

    def record(self, *inputs: Input) -> None:
        """Notes what the run reads in inputs.csv, at once: a run that is resumed compares it."""
        if self.is_begun:
            self._inputs |= {one.key: one for one in inputs}
            write_inputs(self.inputs_path, self._inputs.values())

    def recorded(self) -> list[Input]:
        """Returns what the run in this directory noted.

        Raises:
            ValueError: when its list is damaged.
        """
        return read_inputs(self.inputs_path)

    def upstreams(self) -> dict[str, dict[str, str]]:
        """Returns directory and digest of every run that this one read, by task (and fold)."""
        return {one.name: {"path": one.path, "digest": one.digest} for one in self._inputs.values() if one.what == RUN}

    def upstream(self, task: str) -> "RunDir":
        """Returns the finished run of another task under the same configuration, and notes it as read.

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
        if found.path in self.left_out or not found.is_finished:
            return None
        self.record(run_input(found, task))
        return found

    def upstream_folds(self, task: str) -> "dict[int | str, RunDir]":
        """Returns the finished runs of a per-fold task under the same configuration, by fold, and notes them as read.

        Those that are out of date and to be left out are not among them.
        """
        found = [RunDir(path, self._locate, self._command) for _, path in folds_of(self._path_of(task))]
        present = [run for run in found if run.path not in self.left_out and run.is_finished]
        folds = {run.fold: run for run in present if run.fold is not None}
        if folds:
            self.record(*(run_input(run, f"{task} fold {fold}") for fold, run in folds.items()))
        return folds

    def upstream_draws(self, task: str) -> dict[Draw, "RunDir"]:
        """Returns the finished runs of a per-fold task as `upstream_folds` does, of several repeats and seeds.

        Under repeat 0 and seed 0 those of all repeats and seeds, under others of these.
        """
        found = [(draw, RunDir(path, self._locate, self._command)) for draw, path in draws_of(self._path_of(task))]
        draws = {draw: run for draw, run in found if run.path not in self.left_out and run.is_finished}
        own = self._path_of(task).parent.name.partition("_")[2].partition("_")[2]
        for run in draws.values():
            # Named by the folder but for what is this run's own: so the name leads back to it.
            fold = run.path.parent.name.removeprefix("fold_").removesuffix(f"_{own}" if own else "")
            self.record(run_input(run, f"{task} fold {fold}"))
        return draws

    def write_fitted_on(self, slides: Iterable[FittedItem]) -> None:
        """Lists the slides that this run fitted something on."""
        write_fitted_on(self.fitted_on_path, slides)

    def write_fitted_on_unknown(self, reason: str) -> None:
        """Says that what this run holds was fitted elsewhere, on slides that are not known."""
        with write_atomically(self.fitted_on_unknown_path) as temporary:
            temporary.write_text(reason + "\n")

    def read_fitted_on(self) -> list[FittedItem]:
        """Returns the slides that this run fitted something on, or what it was made from.

        Raises:
            FileNotFoundError: when the run does not say.
            ValueError: when the list is empty or damaged.
        """
        return read_fitted_on(self.fitted_on_path)

    def refuse_leakage(self, upstream: "RunDir", held_out: Sequence[FittedItem]) -> None:
        """Refuses an upstream run that was fitted on slides or cases that this run holds out.

        Where the upstream run says that some of its training slides are not known (an imported SAE), leakage cannot be
        ruled out and a warning says so.

        Raises:
            FileNotFoundError: when the upstream run says nothing.
            ValueError: naming the first slide, case or copy that both have.
        """
        if upstream.fitted_on_unknown_path.is_file():
            reason = upstream.fitted_on_unknown_path.read_text().strip()
            _LOGGER.warning("Leakage cannot be ruled out for %s: %s", upstream.path, reason)
            if not upstream.fitted_on_path.is_file():
                return
        for twins in refuse_leakage(upstream.read_fitted_on(), held_out, f"the run {upstream.path}"):
            _LOGGER.warning("Tiny bags with equal activations on both sides of the split: %s.", twins)

    def trusted_upstream(self, task: str, held_out: Sequence[FittedItem]) -> "RunDir":
        """Returns the finished run of another task as `upstream` does, refused as `refuse_leakage` does."""
        upstream = self.upstream(task)
        self.refuse_leakage(upstream, held_out)
        return upstream

    def pass_on_fitted(self, upstream: "RunDir", slides: Iterable[FittedItem] = ()) -> None:
        """Lists as fitted on what an upstream run lists, together with slides that this run itself fits on.

        What is made with something that was fitted on slides leaks them as that does.
        """
        if upstream.fitted_on_unknown_path.is_file():
            self.write_fitted_on_unknown(upstream.fitted_on_unknown_path.read_text().strip())
        known = upstream.read_fitted_on() if upstream.fitted_on_path.is_file() else []
        if together := list(dict.fromkeys([*known, *slides])):
            self.write_fitted_on(together)

    def _path_of(self, task: str) -> Path:
        if self._locate is None:
            raise ValueError(f"Expected {self.path} to know where the runs of {task} lie; give `locate`.")
        return self._locate(task)

    @staticmethod
    def _made(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def run_input(run: RunDir, name: str) -> Input:
    """Describes a finished run as an input; its digest is that of its results."""
    manifest = run.read_manifest() or {}
    return Input(RUN, name, str(run.path), 0, 0, str(manifest.get("digest", "")))
