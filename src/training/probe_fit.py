"""Fits one probe: its scale on train items, its weights by the solver asked for, its penalty by validation items."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor

from src.analysis.logistic_probe import fit_logistic
from src.data.feeding.item_vectors import ItemVectors
from src.data.feeding.probe_batches import ProbeDataModule
from src.models.probes import Probe
from src.modules.probe import ProbeModule
from src.ops.probe_losses import class_weights, probe_loss
from src.runs.rundir import RunDir
from src.training.trainer import make_trainer

_LOGGER = logging.getLogger(__name__)
# Train values up to which scikit-learn's L-BFGS is used: it holds a few copies of them.
_SMALL_VALUES = 20_000_000
_CHUNK_VALUES = 1 << 22
# As of `fit_standardizer`: a feature's scale is at least this share of the typical one.
_LEAST_SHARE = 0.01


@dataclass(frozen=True)
class ProbeFit:
    """What was chosen.

    Attributes:
        solver: `lbfgs` or `adam`.
        l2: the penalty.
        val_loss: of the weights that were chosen, NaN without validation items.
        n_epochs: that Adam ran.
    """

    solver: str
    l2: float
    val_loss: float
    n_epochs: int


def fit_probe(
    cfg: Any,
    rundir: RunDir,
    probe: Probe,
    vectors: ItemVectors,
    targets: Tensor,
    train: range,
    val: range,
    name: str,
) -> ProbeFit:
    """Fits a probe in place.

    Args:
        cfg: the configuration: `probe`, `seed`, `trainer`.
        rundir: of the task.
        probe: to be fitted.
        vectors: of all items.
        targets: of all items, as for `src.ops.probe_losses.probe_loss`.
        train: the positions of the train items.
        val: those of the validation items, by which penalty and epoch are chosen; may be empty.
        name: of the probe, for logs and files.
    """
    values = vectors.values[vectors.of(train)]
    fit_scale_(probe, values, cfg.probe.scale)
    solver = choose_solver(cfg.probe, values.size)
    known = targets[torch.from_numpy(vectors.items[vectors.of(train)])]
    weights = class_weights(known, len(probe.classes), cfg.probe.class_weights == "balanced")
    penalties = list(cfg.probe.l2)
    if not val and len(penalties) > 1:
        _LOGGER.warning("Without validation items the first penalty is taken: probe.l2=%g.", penalties[0])
        penalties = penalties[:1]
    _LOGGER.info("Probe on %s: %d vectors of %d values, %s.", name, *values.shape, solver)
    if solver == "lbfgs":
        fits = _fit_lbfgs(probe, vectors, targets, vectors.of(train), vectors.of(val), weights)
    else:
        make_data = partial(ProbeDataModule, vectors, targets, train, val, cfg.seed, cfg.probe.batch_size)
        fits = _fit_adam(cfg, rundir, probe, make_data, weights, name, bool(val))
    tried = [(l2, *fits(l2)) for l2 in penalties]
    l2, state, val_loss, n_epochs = min(tried, key=lambda one: one[2] if np.isfinite(one[2]) else np.inf)
    probe.load_state_dict(state)
    probe.eval()
    _LOGGER.info("Probe on %s: l2=%g, validation loss %.4g.", name, l2, val_loss)
    return ProbeFit(solver, l2, val_loss, n_epochs)


def choose_solver(probe: Any, n_values: int) -> str:
    """Returns `lbfgs` or `adam`.

    Args:
        probe: its configuration: `solver`, `d_hidden`, `l1`.
        n_values: train values.

    Raises:
        ValueError: when L-BFGS is asked for what it cannot do.
    """
    is_smooth = probe.d_hidden == 0 and probe.l1 == 0
    if probe.solver == "lbfgs" and not is_smooth:
        raise ValueError(
            f"Expected probe.solver=adam for a hidden layer or an L1 penalty (probe.d_hidden={probe.d_hidden}, "
            f"probe.l1={probe.l1}), got lbfgs."
        )
    if probe.solver == "auto":
        return "lbfgs" if is_smooth and n_values <= _SMALL_VALUES else "adam"
    return probe.solver


def fit_scale_(probe: Probe, values: np.ndarray, how: str) -> None:
    """Sets what a probe shifts and scales vectors by.

    Args:
        probe: it.
        values: of train items, [n, d].
        how: `global`: the mean of each feature, and the root mean variance of all; `feature`: each feature's own
            deviation, at least 1 % of the typical one; `none`.
    """
    if how == "none":
        return
    n_rows = max(1, _CHUNK_VALUES // values.shape[1])
    pieces = [values[start : start + n_rows] for start in range(0, len(values), n_rows)]
    mean: Any = sum(piece.sum(0, dtype=np.float64) for piece in pieces) / len(values)
    squares: Any = sum(np.square(piece - mean).sum(0) for piece in pieces)
    deviation = np.sqrt(squares / len(values))
    if how == "global":
        scale = np.full_like(deviation, np.sqrt(np.square(deviation).mean()))
    else:
        varying = deviation[deviation > 0]
        scale = np.maximum(deviation, _LEAST_SHARE * np.median(varying)) if len(varying) else deviation
    probe.input_mean.copy_(torch.from_numpy(mean))
    probe.input_scale.copy_(torch.from_numpy(np.where(scale > 0, scale, 1.0)))


_Fit = Callable[[float], tuple[dict[str, Tensor], float, int]]


def _fit_lbfgs(probe: Probe, vectors: ItemVectors, targets: Tensor, train: slice, val: slice, weights: Tensor) -> _Fit:
    mean, scale = probe.input_mean.numpy(), probe.input_scale.numpy()
    values = (vectors.values[train] - mean) / scale
    known = targets[torch.from_numpy(vectors.items[train])].numpy()

    def fit(l2: float) -> tuple[dict[str, Tensor], float, int]:
        weight, bias = fit_logistic(values, known, weights.numpy(), l2)
        with torch.no_grad():
            probe.output.weight.copy_(torch.from_numpy(weight))
            probe.output.bias.copy_(torch.from_numpy(bias))
            loss = float("nan")
            if val.stop > val.start:
                of_val = targets[torch.from_numpy(vectors.items[val])]
                loss = float(probe_loss(probe(torch.from_numpy(np.array(vectors.values[val]))), of_val, weights))
        return {name: value.clone() for name, value in probe.state_dict().items()}, loss, 0

    return fit


def _fit_adam(
    cfg: Any,
    rundir: RunDir,
    probe: Probe,
    make_data: Callable[[], ProbeDataModule],
    weights: Tensor,
    name: str,
    has_val: bool,
) -> _Fit:
    start = {key: value.clone() for key, value in probe.state_dict().items()}

    def fit(l2: float) -> tuple[dict[str, Tensor], float, int]:
        lightning.seed_everything(cfg.seed, workers=True, verbose=False)
        probe.load_state_dict(start)
        probe.train()
        module = ProbeModule(probe, weights, cfg.probe.lr, l2, cfg.probe.l1, f"{name}_l2_{l2:g}")
        # Without validation items there is nothing to choose by: the last weights are kept.
        folder, monitor = rundir.checkpoints_dir / f"{name}_l2_{l2:g}", module.monitored if has_val else None
        best = ModelCheckpoint(folder, "best", monitor, save_weights_only=True, enable_version_counter=False)
        callbacks = [best, EarlyStopping(module.monitored, patience=cfg.probe.patience)] if has_val else [best]
        limits = {"limit_val_batches": 1.0 if has_val else 0, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
        trainer = make_trainer(cfg, rundir, callbacks, part=module.name, max_epochs=cfg.probe.max_epochs, **limits)
        trainer.fit(module, make_data())
        if trainer.interrupted:
            raise KeyboardInterrupt("Training was interrupted; start again to train the probes.")
        state = torch.load(best.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
        prefix = "probe."
        loss = float("nan") if best.best_model_score is None else float(best.best_model_score)
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        probe.cpu()
        return own, loss, trainer.current_epoch

    return fit
