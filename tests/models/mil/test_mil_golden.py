"""The models of sae-1n and CLAM: outputs, losses, and ten steps of training, from their own weights."""

import json
import re

import numpy as np
import pytest
import torch

from src.data.feeding.bags import collate_bags
from src.models.mil.attention import AttentionMIL
from src.models.mil.clam import CLAM
from src.models.mil.max_pool import MaxMIL
from src.models.mil.mean_pool import MeanMIL
from src.models.mil.transmil import TransMIL
from src.modules.mil import MILModule

pytestmark = pytest.mark.golden
# Tolerances of the golden folder's README.
LOSS = {"rtol": 1e-5, "atol": 1e-6}
VALUES = {"rtol": 1e-4, "atol": 2e-5}
INSTANCE = {"head.0": "patch_encoder", "head.2": "classifier"}
ABMIL = {
    "feature.0": "patch_encoder",
    "attention.0": "attention_value",
    "attention.2": "attention_score",
    "attention_V.0": "attention_value",
    "attention_U.0": "attention_gate",
    "attention_weights": "attention_score",
    "classifier.0": "classifier",
}
CLAM_NAMES = {
    "attention_net.0": "patch_encoder",
    "attention_net.3.attention_a.0": "attention_value",
    "attention_net.3.attention_b.0": "attention_gate",
    "attention_net.3.attention_c": "attention_score",
    "attention_net.3.module.0": "attention_value",
    "attention_net.3.module.2": "attention_score",
    "classifiers": "classifier",
    "instance_classifiers.0": "instance_classifiers.0",
    "instance_classifiers.1": "instance_classifiers.1",
}
TRANSMIL = {"_fc1.0": "patch_encoder", "norm": "norm", "classifier": "classifier"}
TRANSMIL |= {f"pos_layer.proj{suffix}": f"positions.{i}" for i, suffix in enumerate(("", "1", "2"))}
TRANSMIL |= {
    f"layer{i + 1}.{theirs}": f"layers.{i}.{ours}"
    for i in range(2)
    for theirs, ours in {
        "norm": "norm",
        "attn.to_qkv": "to_qkv",
        "attn.to_out.0": "to_out",
        "attn.res_conv": "residual",
    }.items()
}
WITHOUT_DROPOUT = {"dropout": 0.0}
MODELS = {
    "maxmil": (MaxMIL, INSTANCE, WITHOUT_DROPOUT),
    "maxmil_gelu": (MaxMIL, INSTANCE, {"activation": "gelu"}),
    "meanmil": (MeanMIL, INSTANCE, WITHOUT_DROPOUT),
    "abmil": (AttentionMIL, ABMIL, WITHOUT_DROPOUT),
    "abmil_gelu": (AttentionMIL, ABMIL, {"activation": "gelu"}),
    "gated_abmil": (AttentionMIL, ABMIL, WITHOUT_DROPOUT | {"gated": True}),
    "clam_sb": (CLAM, CLAM_NAMES, {}),
    "clam_sb_nogate": (CLAM, CLAM_NAMES, {"gated": False}),
    "clam_sb_subtyping": (CLAM, CLAM_NAMES, {}),
    "clam_mb": (CLAM, CLAM_NAMES, {"branch_per_class": True}),
    "clam_mb_subtyping": (CLAM, CLAM_NAMES, {"branch_per_class": True}),
    "transmil": (TransMIL, TRANSMIL, {"activation": "gelu"}),
    "transmil_dim32": (TransMIL, TRANSMIL, {"n_hidden": 32}),
}


def read(path):
    with np.load(path) as arrays:
        return dict(arrays)


def our_name(theirs, names):
    layer, _, kind = theirs.rpartition(".")
    return f"{names[layer]}.{kind}"


def our_weights(arrays, names):
    theirs = {
        key.removeprefix("param_q/"): torch.from_numpy(
            arrays[key].astype(np.float32) * arrays[key.replace("param_q/", "param_scale/")]
        )
        for key in arrays
        if key.startswith("param_q/")
    }
    if (token := theirs.pop("cls_token", None)) is not None:
        theirs["class_token."] = token.flatten()
    by_class = [key for key in theirs if re.fullmatch(r"classifiers\.\d\.(weight|bias)", key)]
    for kind in ("weight", "bias") if by_class else ():
        rows = [theirs.pop(key) for key in sorted(by_class) if key.endswith(kind)]
        theirs[f"classifiers.{kind}"] = torch.cat(rows)
    known = names | {"class_token": "class_token"}
    return {our_name(key, known).rstrip("."): value for key, value in theirs.items()}


@pytest.fixture(params=list(MODELS))
def golden(request, golden_dir):
    arrays = read(golden_dir / "mil" / f"{request.param}.npz")
    class_, names, options = MODELS[request.param]
    if class_ is CLAM:
        stated = json.loads(str(arrays["config_json"]))
        options = options | {"n_sampled": stated["k_sample"], "dropout": stated["dropout"]}
        options["subtyping"] = stated.get("subtyping", False)
    stored = read(golden_dir / "mil" / str(arrays["params_from"])) if "params_from" in arrays else arrays
    weights = our_weights(stored, names)
    d_in, n_classes = weights["patch_encoder.weight"].shape[1], weights["classifier.weight"].shape[0]
    model = class_(d_in, n_classes, **options)
    model.load_state_dict(weights)
    return names, arrays, model


def check_bags(arrays, model, prefix):
    for key in arrays:
        if match := re.fullmatch(rf"{prefix}(bag\d+)/logits", key):
            bag = torch.from_numpy(arrays[f"{match[1]}/x"])
            with torch.no_grad():
                output = model(bag[None], torch.ones(1, len(bag), dtype=torch.bool))
            np.testing.assert_allclose(output.logits, arrays[key], **VALUES)
            np.testing.assert_allclose(output.logits.softmax(-1), arrays[f"{prefix}{match[1]}/prob"], **VALUES)
            expected = {"attention_softmax": output.attention, "instance_out": output.instance_logits}
            for name, value in expected.items():
                if f"{prefix}{match[1]}/{name}" in arrays:
                    np.testing.assert_allclose(value[0], arrays[f"{prefix}{match[1]}/{name}"], **VALUES)


def test_outputs(golden):
    _, arrays, model = golden
    assert "bag0/logits" in arrays
    check_bags(arrays, model.eval(), "")


def test_named_losses_of_clam(golden):
    _, arrays, model = golden
    found = [match for key in arrays if (match := re.fullmatch(r"(bag\d+)/label(\d)/instance_loss", key))]
    for match in found:
        bag, prefix = torch.from_numpy(arrays[f"{match[1]}/x"]), f"{match[1]}/label{match[2]}"
        output = model.eval()(bag[None], torch.ones(1, len(bag), dtype=torch.bool), torch.tensor([int(match[2])]))
        losses = {name: value.item() for name, value in output.losses.items()}
        np.testing.assert_allclose(losses["bag"] / 0.7, arrays[f"{prefix}/bag_loss"], **LOSS)
        np.testing.assert_allclose(losses["instance"] / 0.3, arrays[f"{prefix}/instance_loss"], **LOSS)
        np.testing.assert_allclose(sum(losses.values()), arrays[f"{prefix}/total_loss_bagw0.7"], **LOSS)
    assert bool(found) == isinstance(model, CLAM)


def test_training(golden):
    """Through our module: its loss and its optimizer at the published learning rate and weight decay."""
    names, arrays, model = golden
    module = MILModule(model)
    optimizer = module.configure_optimizers()
    losses = []
    for step, label in enumerate(arrays.get("train/labels", ())):
        bag = torch.from_numpy(arrays[f"train/x{step}"])
        batch = collate_bags([str(step)], [bag], [int(label)])
        loss = module.training_step(batch, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if not losses:
        pytest.skip("no training trace of this model")
    np.testing.assert_allclose(losses, arrays["train/loss"], **LOSS)
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    for key in arrays:
        kind, _, parameter = key.partition("/")
        if kind == "final":
            np.testing.assert_allclose(state[our_name(parameter, names)], arrays[key], **VALUES)
        elif match := re.fullmatch(r"final_rows(\d+)", kind):
            np.testing.assert_allclose(state[our_name(parameter, names)][: int(match[1])], arrays[key], **VALUES)
        elif kind in ("final_sum", "final_sumsq"):
            values = state[our_name(parameter, names)].astype(np.float64) ** (2 if kind == "final_sumsq" else 1)
            # The values differ by up to 1e-4 of themselves, at random, so their sum by much less.
            np.testing.assert_allclose(values.sum(), arrays[key], rtol=0, atol=1e-5 * np.abs(values).sum())
    check_bags(arrays, model.eval(), "after_train/")
