"""The models of sae-1n: outputs, and ten steps of its training, from its own weights."""

import re

import numpy as np
import pytest
import torch

from src.data.feeding.bags import collate_bags
from src.models.mil.attention import AttentionMIL
from src.models.mil.max_pool import MaxMIL
from src.modules.mil import MILModule

pytestmark = pytest.mark.golden
# Tolerances of the golden folder's README.
LOSS = {"rtol": 1e-5, "atol": 1e-6}
VALUES = {"rtol": 1e-4, "atol": 2e-5}
OUR_NAMES = {
    "maxmil": {"head.0": "patch_encoder", "head.2": "classifier"},
    "abmil": {
        "feature.0": "patch_encoder",
        "attention.0": "attention_value",
        "attention.2": "attention_score",
        "classifier.0": "classifier",
    },
    "gated_abmil": {
        "feature.0": "patch_encoder",
        "attention_V.0": "attention_value",
        "attention_U.0": "attention_gate",
        "attention_weights": "attention_score",
        "classifier.0": "classifier",
    },
}


def ours(theirs: str, name: str) -> str:
    layer, _, kind = theirs.rpartition(".")
    return f"{OUR_NAMES[name][layer]}.{kind}"


@pytest.fixture(params=list(OUR_NAMES))
def golden(request, golden_dir):
    arrays = np.load(golden_dir / "mil" / f"{request.param}.npz")
    weights = {
        ours(key.removeprefix("param_q/"), request.param): torch.from_numpy(
            arrays[key].astype(np.float32) * arrays[key.replace("param_q/", "param_scale/")]
        )
        for key in arrays.files
        if key.startswith("param_q/")
    }
    d_in = weights["patch_encoder.weight"].shape[1]
    n_classes = weights["classifier.weight"].shape[0]
    if request.param == "maxmil":
        model = MaxMIL(d_in, n_classes, dropout=0)
    else:
        model = AttentionMIL(d_in, n_classes, dropout=0, gated=request.param == "gated_abmil")
    model.load_state_dict(weights)
    return request.param, arrays, model


def check_bags(arrays, model, prefix):
    for key in arrays.files:
        if match := re.fullmatch(rf"{prefix}(bag\d+)/logits", key):
            bag = torch.from_numpy(arrays[f"{match[1]}/x"])
            with torch.no_grad():
                output = model(bag[None], torch.ones(1, len(bag), dtype=torch.bool))
            np.testing.assert_allclose(output.logits, arrays[key], **VALUES)
            np.testing.assert_allclose(output.logits.softmax(-1), arrays[f"{prefix}{match[1]}/prob"], **VALUES)
            expected = {"attention_softmax": output.attention, "instance_out": output.instance_logits[0]}
            for name, value in expected.items():
                if f"{prefix}{match[1]}/{name}" in arrays.files:
                    np.testing.assert_allclose(value, arrays[f"{prefix}{match[1]}/{name}"], **VALUES)


def test_outputs(golden):
    _, arrays, model = golden
    assert "bag0/logits" in arrays.files
    check_bags(arrays, model.eval(), "")


def test_training(golden):
    """Through our module: its loss and its optimizer at the published learning rate and weight decay."""
    name, arrays, model = golden
    module = MILModule(model)
    optimizer = module.configure_optimizers()
    losses = []
    for step, label in enumerate(arrays["train/labels"]):
        bag = torch.from_numpy(arrays[f"train/x{step}"])
        batch = collate_bags([str(step)], [bag], [int(label)])
        loss = module.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(losses, arrays["train/loss"], **LOSS)
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    for key in arrays.files:
        kind, _, parameter = key.partition("/")
        if kind == "final":
            np.testing.assert_allclose(state[ours(parameter, name)], arrays[key], **VALUES)
        elif match := re.fullmatch(r"final_rows(\d+)", kind):
            np.testing.assert_allclose(state[ours(parameter, name)][: int(match[1])], arrays[key], **VALUES)
        elif kind in ("final_sum", "final_sumsq"):
            values = state[ours(parameter, name)].astype(np.float64) ** (2 if kind == "final_sumsq" else 1)
            # The values differ by up to 1e-4 of themselves, at random, so their sum by much less.
            np.testing.assert_allclose(values.sum(), arrays[key], rtol=0, atol=1e-5 * np.abs(values).sum())
    check_bags(arrays, model.eval(), "after_train/")
