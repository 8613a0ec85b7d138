"""Gathers the pages of every finished run of an experiment into one self-contained HTML file."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src import config
from src.files import write_atomically
from src.report.doubts import describe_doubts, expected_l0
from src.report.headline import build_headline
from src.report.html import Report, RunPage, render_report
from src.report.page import PageFigure, read_page
from src.runs import provenance
from src.runs.rundir import RunDir
from src.tasks.pipeline import why_skipped
from src.wording import words_of

_LOGGER = logging.getLogger(__name__)
_MEASURE_SAES = ("train_sae", "evaluate_sae", "encode")


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Writes report.html; what is not there is named in it with the reason.

    Returns:
        `n_pages`, `n_missing` and `n_warnings`.
    """
    runs = list(_finished_runs(cfg, rundir))
    pages = [
        RunPage(
            task, fold, run.path, read_page(run.page_path), run.read_manifest() or {}, config.tasks()[task].order or 0
        )
        for task, fold, run in runs
        if run.page_path.is_file()
    ]
    left_out = [
        (f"{path.name}, {path.parent.name}", f"Left out, out of date: {why}") for path, why in rundir.left_out.items()
    ]
    missing = [*left_out, *_missing(cfg, runs)]
    warnings = [*_warnings(cfg, pages), *_doubts(cfg, runs)]
    report = Report(
        title=cfg.name,
        facts=_facts(cfg, pages),
        headline=_headline(cfg, runs, pages),
        pages=pages,
        missing=missing,
        warnings=warnings,
        provenance=_provenance(pages),
        made=provenance.now()[:10],
        max_image_width=cfg.report.max_image_width,
    )
    with write_atomically(rundir.report_path) as temporary:
        temporary.write_text(render_report(report), encoding="utf-8")
    _LOGGER.info("Report: %s", rundir.report_path.resolve())
    return {"n_pages": len(pages), "n_missing": len(missing), "n_warnings": len(warnings)}


def inputs(cfg: Any, rundir: RunDir) -> list[Path]:
    """Returns the files whose change makes the report out of date."""
    return [
        path
        for _, _, run in _finished_runs(cfg, rundir)
        for path in (run.manifest_path, run.page_path)
        if path.is_file()
    ]


def _finished_runs(cfg: Any, rundir: RunDir) -> Iterator[tuple[str, int | str | None, RunDir]]:
    """Yields task, fold (None when it has none) and directory of every finished run of this configuration."""
    for spec in sorted(config.tasks().pages, key=lambda spec: spec.name):
        task = spec.name
        if task in config.tasks().given(cfg):
            continue  # it has its page in the report of its own study
        if spec.scope == "fold":
            for fold, run in rundir.upstream_folds(task).items():
                yield task, fold, run
        elif (run := rundir.optional_upstream(task)) is not None:
            yield task, None, run


def _missing(cfg: Any, runs: list[tuple[str, int | str | None, RunDir]]) -> Iterator[tuple[str, str]]:
    """Yields every expected task (and fold) without a page, with the reason."""
    folds = sorted({fold for _, fold, _ in runs if fold is not None}, key=str)
    pages = {(task, fold): run.page_path.is_file() for task, fold, run in runs}
    for spec in config.tasks().steps:
        task = spec.name
        if spec.order is None:
            continue
        for fold in folds or [cfg.fold] if spec.scope == "fold" else [None]:
            if pages.get((task, fold)):
                continue
            part = task if fold is None else f"{task}, fold {fold}"
            if (task, fold) in pages:
                yield part, "It is finished and left no page: run it again with overwrite=true."
            elif reasons := why_skipped(cfg, task):
                yield part, "; ".join(reasons)
            else:
                choice = "" if fold is None else f" fold={fold}"
                yield part, f"Not finished yet: give the same command with task={task}{choice}."


def _headline(cfg: Any, runs: list[tuple[str, int | str | None, RunDir]], pages: list[RunPage]) -> Any:
    def tables(task: str, name: str) -> dict[int | str, Path]:
        return {
            fold or 0: path
            for found, fold, run in runs
            if found == task and (path := run.path / "analysis" / f"{name}.csv").is_file()
        }

    # localize puts the slide that shows most first.
    figure = next(
        (
            PageFigure(page.run_dir / figure.path, figure.caption)
            for page in pages
            if page.task == "localize"
            for figure in page.page.figures
            if Path(figure.path).name.startswith("overlay_")
        ),
        None,
    )
    summary = next(iter(tables("summarize_cv", "summary").values()), None)
    return build_headline(
        tables("select_neurons", "neurons"),
        tables("localize", "localization"),
        summary,
        figure,
        cfg.dataset.positive_class,
        words_of(cfg.dataset),
    )


def _facts(cfg: Any, pages: list[RunPage]) -> list[tuple[str, str]]:
    folds = sorted({page.fold for page in pages if page.fold is not None}, key=str)
    return [
        ("data", cfg.dataset.name),
        ("backbone", cfg.backbone.name),
        ("SAE", str(cfg.sae._target_).rpartition(".")[2]),
        ("folds", ", ".join(str(fold) for fold in folds) or "none yet"),
    ]


def _warnings(cfg: Any, pages: list[RunPage]) -> Iterator[str]:
    if cfg.backbone.get("pretrained") is False and not cfg.backbone.get("checkpoint"):
        yield (
            f"The backbone {cfg.backbone.name} has random weights (fixed by its seed): the numbers show that the "
            "pipeline works, not what a pathology encoder knows. Name real ones, e.g. "
            "backbone=uni, backbone=resnet50 or backbone.checkpoint=<file>."
        )
    commits = {page.manifest["git"]["commit"] for page in pages}
    if len(commits) > 1:
        yield f"The runs were made with {len(commits)} different commits of the code; see Provenance."
    if any(page.manifest["git"]["dirty"] for page in pages):
        yield "Some runs were made with changes to the code that are in no commit."


def _doubts(cfg: Any, runs: list[tuple[str, int | str | None, RunDir]]) -> list[str]:
    measured = [
        (fold, run.read_results()) for task, fold, run in runs if task in _MEASURE_SAES and run.results_path.is_file()
    ]
    return describe_doubts(measured, expected_l0(cfg))


def _provenance(pages: list[RunPage]) -> list[tuple[str, list[str]]]:
    commands = dict.fromkeys(" ".join(page.manifest["argv"]) for page in pages)
    versions = dict.fromkeys(
        ", ".join(f"{name} {version}" for name, version in page.manifest["versions"].items() if version)
        for page in pages
    )
    machines = dict.fromkeys(
        f"{page.manifest['hardware']['platform']}, {page.manifest['hardware']['cpus']} CPUs, "
        f"GPUs: {', '.join(page.manifest['hardware']['gpus']) or 'none'}"
        for page in pages
    )
    places = [str(page.run_dir) for page in pages]
    lines = {"Commands": commands, "Versions": versions, "Machines": machines, "Run directories": places}
    return [(title, list(content)) for title, content in lines.items() if content]
