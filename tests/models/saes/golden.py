"""Follows the golden traces of SAE training with our own SAEs, one optimizer step at a time."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch

from src.config import CONF_DIR, instantiate
from src.models.saes.base import SAE
from src.models.saes.step import SAEStep, TrainingProgress
from src.ops.schedules import learning_rate_factor

# Of the golden set's README: what the reference's own float64 run and an independent one agree to, with room.
TRACE = {"rtol": 1e-5, "atol": 1e-6}
PARAMETERS = {"rtol": 1e-4, "atol": 2e-5}


@dataclass(frozen=True)
class Golden:
    """One file: its arrays and its settings."""

    name: str
    arrays: dict[str, np.ndarray]
    settings: dict[str, Any]

    def tensor(self, name):
        return torch.from_numpy(self.arrays[name])

    def assert_trace(self, name, index, value, **tolerance):
        expected = self.arrays[f"trace/{name}"][index]
        np.testing.assert_allclose(value, expected, **(tolerance or TRACE), err_msg=f"{self.name} {name} {index}")

    def assert_close(self, name, value, **tolerance):
        value = value.detach().numpy() if torch.is_tensor(value) else value
        np.testing.assert_allclose(value, self.arrays[name], **(tolerance or PARAMETERS), err_msg=f"{self.name} {name}")


def golden_files(golden_dir, pattern):
    paths = sorted(Path(golden_dir).glob(pattern))
    assert paths, f"no {pattern} in {golden_dir}"
    for path in paths:
        arrays = dict(np.load(path))
        yield Golden(path.name, arrays, json.loads(str(arrays.pop("config_json"))))


def compose_sae(preset, d_in, **options):
    with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        node = hydra.compose(f"sae/{preset}").sae
    for name, value in options.items():
        node[name] = value
    return instantiate(node, d_in=d_in)


@dataclass(frozen=True)
class Training:
    """How a reference trains: what SAEModule is given."""

    lr: float
    betas: tuple[float, float]
    max_grad_norm: float | None = None
    schedule: dict[str, Any] | None = None


def train(sae: SAE, batches: torch.Tensor, training: Training) -> Iterator[tuple[int, SAEStep, float, float | None]]:
    """Yields (index, step, learning rate, gradient norm) after every optimizer step, in the order of SAEModule."""
    parameters = [parameter for parameter in sae.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=training.lr, betas=training.betas, fused=True)
    for index, batch in enumerate(batches):
        progress = TrainingProgress(index, len(batches), len(batches))
        lr = training.lr * learning_rate_factor(index, **(training.schedule or {}))
        for group in optimizer.param_groups:
            group["lr"] = lr
        sae.constrain_before_forward_()
        step = sae.step(batch, progress)
        step.loss.backward()
        sae.constrain_gradient_()
        limit = np.inf if training.max_grad_norm is None else training.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        sae.constrain_before_step_()
        optimizer.step()
        optimizer.zero_grad()
        sae.constrain_after_step_()
        sae.finish_step_(batch, progress, optimizer)
        yield index, step, lr, float(norm)
