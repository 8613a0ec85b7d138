"""What training leaves of SAEs: thresholds calibrated on the train rows, and exports."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from src import config
from src.data.feeding.activations import ActivationDataModule
from src.data.feeding.epoch_order import block_batches
from src.data.feeding.rows import RowSource
from src.data.fold import FoldData
from src.data.streamed_fold import StreamedFold
from src.models.saes.base import SAE
from src.modules.divergence import require_finite_state
from src.ops.selection import ThresholdSearch
from src.runs.rundir import RunDir
from src.stores.modules import spec_of
from src.stores.sae import load_sae, save_sae
from src.tasks.upstream_sae import open_inference

_LOGGER = logging.getLogger(__name__)
BATCH_ROWS = 4096

TrainFold = FoldData | StreamedFold


class Trained(NamedTuple):
    """An SAE, the run that it is trained in, and what it is trained on."""

    cfg: Any
    rundir: RunDir
    fold: TrainFold
    sae: SAE


def columns_of(fold: TrainFold) -> slice:
    """Returns where the activations that are meant lie in a row: several layers of one stream lie side by side."""
    return fold.columns if isinstance(fold, StreamedFold) else slice(None)


def export(data: ActivationDataModule, trained: Sequence[Trained]) -> None:
    """Exports trained SAEs of the given configurations to the directories of their runs, thresholds calibrated."""
    searches: list[tuple[Trained, ThresholdSearch]] = []
    n_rows = data.train_rows.n_rows
    for one in trained:
        cfg, sae = one.cfg, one.sae
        sae.eval().cpu()
        if cfg.train.calibrate_threshold and sae.threshold_l0 is not None:
            searches.append((one, ThresholdSearch(cfg.train.calibrate_l0 or getattr(sae, sae.threshold_l0), n_rows)))
    _calibrate(trained[0].cfg, searches, data)
    for cfg, rundir, fold, sae in trained:
        require_finite_state({"state_dict": sae.state_dict()}, "weights to export")
        metadata = {"name": cfg.name, "fold": cfg.fold, "seed": cfg.seed, "dataset": cfg.dataset.name}
        metadata |= {"backbone": cfg.backbone.name, "sae": config.to_container(cfg.sae)}
        save_sae(sae, rundir.export_dir, metadata, fold.fitted("train"), fold.spec)
        for path in sorted(rundir.checkpoints_dir.glob("step_*.ckpt")):
            export_checkpoint(rundir, path.stem)


def export_checkpoint(rundir: RunDir, name: str) -> Path:
    """Exports a checkpoint of a run whose last SAE is exported, its threshold as training left it.

    Args:
        rundir: the run's directory.
        name: of the checkpoint: `best`, `last`, `step_<n>`.

    Returns:
        The folder: `export/<name>`.
    """
    sae = load_sae(rundir.export_dir)
    state = torch.load(rundir.checkpoints_dir / f"{name}.ckpt", map_location="cpu", weights_only=True)["state_dict"]
    sae.load_state_dict({key.removeprefix("sae."): value for key, value in state.items() if key.startswith("sae.")})
    metadata = json.loads((rundir.export_dir / "cfg.json").read_text())["metadata"]
    stated = (metadata | {"checkpoint": name}, rundir.read_fitted_on(), spec_of(metadata))
    save_sae(sae, rundir.export_dir / name, *stated)
    return rundir.export_dir / name


def reads_in_order(rows: RowSource, columns: slice = slice(None)) -> Iterator[Callable[[], torch.Tensor]]:
    """Yields what reads all rows in batches of at least BATCH_ROWS, where there are as many, of almost one size."""

    def read(start: int, stop: int) -> torch.Tensor:
        return torch.from_numpy(np.array(rows.read(start, stop)[:, columns], dtype=np.float32))

    n_batches = max(1, rows.n_rows // BATCH_ROWS)
    pieces = (block_batches(0, rows.n_rows, rows.n_rows, i, n_batches) for i in range(n_batches))
    return (partial(read, start, stop) for ((start, stop),) in pieces)


def _calibrate(cfg: Any, searches: Sequence[tuple[Trained, ThresholdSearch]], data: ActivationDataModule) -> None:
    """Sets the thresholds at which inference keeps k latents per train row: the moving average saw moving weights."""
    if not searches:
        return
    _LOGGER.info("Reading all train rows once to calibrate the inference threshold.")
    inference = open_inference(cfg)
    for one, _ in searches:
        one.sae.to(inference.device)

    def candidates(rows: torch.Tensor) -> tuple[int, list[torch.Tensor]]:
        own = ((one.sae, rows[:, columns_of(one.fold)].contiguous(), search) for one, search in unfinished)
        return len(rows), [search.candidates(_values_above(sae, columns, search.floor)) for sae, columns, search in own]

    unfinished = list(searches)
    while unfinished:
        for n_rows, found in inference.run(candidates, reads_in_order(data.train_rows)):
            for (_, search), values in zip(unfinished, found, strict=True):
                search.add(values, n_rows)
        unfinished = [(one, search) for one, search in unfinished if search.needs_another_pass()]
    for one, search in searches:
        sae = one.sae
        sae.threshold.copy_(search.compute())
        sae.cpu()
        _LOGGER.info("Inference threshold: %.4g, calibrated on all train rows.", float(sae.threshold))


def _values_above(sae: SAE, activations: torch.Tensor, floor: float) -> torch.Tensor:
    """Returns all pre-latents, or where that is faster those above a floor."""
    if not (sae.screens and floor > 0):
        return sae.pre_latents(activations).float()
    inputs, _ = sae.normalize(activations)
    return sae.product(sae.centre(inputs)).above(sae.threshold.new_tensor(floor)).values
