"""Imports an SAE that another system trained, and exports it as ours."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from src.files import digest_file
from src.fitted_on import FILE as FITTED_ON_FILE
from src.fitted_on import read_fitted_on
from src.inputs import file_input
from src.metrics.latent_counts import L0
from src.metrics.variance_unexplained import FractionOfVarianceUnexplained
from src.models.saes.base import SAE
from src.records import FittedItem
from src.report.page import Page
from src.runs.rundir import RunDir
from src.safe_pickle import load_checkpoint
from src.stores.importers.imported import ImportedSAE, build_sae, with_unit_atoms
from src.stores.importers.registry import import_sae
from src.stores.importers.source import Source
from src.stores.sae import FITTED_ON_KEY, save_sae

_LOGGER = logging.getLogger(__name__)
_ROWS = 8192
_UNKNOWN = "the SAE was imported from {weights}, which does not say on which slides it was trained."


def run(cfg: Any, rundir: RunDir) -> dict[str, float]:
    """Reads `convert.path`, checks it and writes `export/`.

    Returns:
        `d_in`, `n_latents`, and with activations `fvu`, `explained_variance` and `l0`.

    Raises:
        FileNotFoundError: when the checkpoint, or a file that belongs to it, is missing.
        ValueError: when no path is given, the checkpoint is not one of the formats or has no equal among our SAEs, or
            its FVU is not the one that it records.
    """
    if cfg.convert.path is None:
        raise ValueError("Expected a checkpoint to import, got none: give convert.path=<file or folder>.")
    source = Source(cfg.convert.path)
    name, imported = import_sae(source, cfg.convert.format)
    if cfg.convert.unit_norm_atoms:
        imported = with_unit_atoms(imported)
    sae = build_sae(imported, source.weights)
    rundir.record(*(file_input("file", path, name=path.name) for path in source.files))
    results: dict[str, float] = {"d_in": sae.d_in, "n_latents": sae.n_latents}
    if cfg.convert.activations is not None:
        path = Path(cfg.convert.activations)
        activations = _read_activations(path, sae.d_in)
        rundir.record(file_input("file", path, name="activations"))
        results |= _measure(sae, activations)
    checked = _check_fvu(imported, results.get("fvu"), cfg.convert.fvu_tolerance, source)
    notes = {"folded": list(imported.folded), "assumed": list(imported.assumed)}
    read = {path.name: digest_file(path) for path in source.files}
    fitted = _fitted_on(source)
    metadata = {"imported": {"format": name, "files": read, "settings": imported.facts, **notes}}
    save_sae(sae, rundir.export_dir, metadata, fitted)
    if fitted is None:
        rundir.write_fitted_on_unknown(_UNKNOWN.format(weights=source.weights))
        known = (
            "The slides that the SAE was trained on are not known: on slides among them, held-out numbers of later "
            "steps are not held out."
        )
    else:
        rundir.write_fitted_on(fitted)
        known = f"The {len(fitted)} slides that the SAE was trained on are listed in its export."
    _LOGGER.info("%s is %s of %s. Use it with sae_run=%s.", source.weights, type(sae).__name__, name, rundir.path)
    _write_page(rundir, source, f"{name} from {source.path}", imported, [known, checked], results)
    return results


def _fitted_on(source: Source) -> list[FittedItem] | None:
    """Returns the slides that an SAE of ours was fitted on, None of an SAE that does not say.

    Raises:
        ValueError: when the export says that it has such a list and the list is not beside it.
    """
    stated = (source.json("cfg.json") or {}).get("metadata", {}).get(FITTED_ON_KEY)
    if stated is None:
        return None
    path = source.path_of(FITTED_ON_FILE)
    if not path.is_file() or digest_file(path) != stated:
        raise ValueError(
            f"Expected {path}, the list of slides that this SAE was fitted on, as its cfg.json states it, got "
            f"{'another list' if path.is_file() else 'no such file'}: copy the whole export folder."
        )
    return read_fitted_on(path)


def _read_activations(path: Path, d_in: int) -> torch.Tensor:
    if not path.is_file():
        raise FileNotFoundError(f"Expected activations [n_rows, {d_in}] at {path}, found no such file.")
    if path.suffix == ".npy":
        # A copy on write: torch asks for memory that it may write to.
        content = torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
    else:
        content = load_checkpoint(path)
    if not isinstance(content, torch.Tensor) or content.ndim != 2 or content.shape[1] != d_in or not len(content):
        found = tuple(content.shape) if isinstance(content, torch.Tensor) else type(content).__name__
        raise ValueError(f"Expected activations [n_rows, {d_in}] in {path}, got {found}.")
    return content


@torch.no_grad()
def _measure(sae: SAE, activations: torch.Tensor) -> dict[str, float]:
    fvu, l0 = FractionOfVarianceUnexplained(sae.d_in), L0()
    for rows in activations.split(_ROWS):
        rows = rows.float()
        latents = sae.encode(rows)
        l0.update(latents)
        fvu.update(rows, sae.decode(latents, sae.normalize(rows)[1]))
    unexplained = float(fvu.compute())
    return {"fvu": unexplained, "explained_variance": 1 - unexplained, "l0": float(l0.compute())}


def _check_fvu(imported: ImportedSAE, measured: float | None, tolerance: float, source: Source) -> str:
    """Compares the FVU with the recorded one, and says what came of it."""
    recorded = imported.recorded_fvu
    if recorded is None:
        return "The checkpoint records no FVU to compare with."
    if measured is None:
        _LOGGER.warning("%s records an FVU of %.4g; convert.activations=<file> checks it.", source.weights, recorded)
        return f"The checkpoint records an FVU of {recorded:.4g}, which was not checked: no activations were given."
    if not abs(measured - recorded) <= tolerance:
        raise ValueError(
            f"Expected the FVU of {recorded:.4g} that comes with {source.weights}, within convert.fvu_tolerance="
            f"{tolerance:g}, got {measured:.4g}: the activations are others than it was measured on, or the import is "
            "wrong."
        )
    return f"The FVU is {measured:.4g}; the checkpoint records {recorded:.4g} (tolerance {tolerance:g})."


def _write_page(
    rundir: RunDir, source: Source, name: str, imported: ImportedSAE, remarks: list[str], results: dict[str, float]
) -> None:
    settings = pd.DataFrame([(key, str(value)) for key, value in imported.facts.items()], columns=["setting", "value"])
    rundir.add_table("imported", settings, "What the checkpoint says of itself.", max_rows=100)
    arguments = ", ".join(f"{key}={value}" for key, value in sorted(imported.arguments.items()))
    read = ", ".join(path.name for path in source.files)
    texts = [
        f"Read as {name} ({read}): {imported.sae_class.__name__} with {arguments or 'our defaults'}.",
        "Folded: " + (" ".join(imported.folded) or "nothing."),
        "Assumed: " + (" ".join(imported.assumed) or "nothing."),
        "Settings of training alone are Loupe's defaults.",
    ]
    rundir.write_page(Page("Imported SAE", [*texts, *remarks], results))
