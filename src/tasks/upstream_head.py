"""The head whose classes a task steers, checked against the fold and the layer that it is used on."""

from typing import Any

from src.activation_spec import require_same_spec
from src.data.fold import FoldData
from src.models.backbones.base import Backbone
from src.models.backbones.open_clip_backbone import OpenClipBackbone
from src.models.heads import BagHead, Head, PooledProbe, TailHead
from src.models.mil.classifier import BagClassifier
from src.models.probes import Probe
from src.models.zero_shot import ZeroShot, half_of_classes, imagenet_templates, zero_shot_of
from src.runs.rundir import RunDir
from src.stores.modules import load_module, spec_of
from src.tasks.streaming import open_backbone
from src.tasks.upstream_sae import require_same_sae

HEADS = ("auto", "probe", "mil", "tail", "tail_probe", "zero_shot")


def open_upstream_head(cfg: Any, rundir: RunDir, fold: FoldData) -> Head:
    """Opens the head that `steer.head` names, on the CPU or where the backbone is.

    Args:
        cfg: the configuration: `steer`, and of heads behind the rest of the model `backbone`.
        rundir: of the task.
        fold: what is steered; the head must not have been fitted on its test items.

    Raises:
        FileNotFoundError: when the head was not trained.
        ValueError: when the head is unknown, was fitted on test items or on other activations, or the rest of the model
            cannot be run from the fold's activations.
    """
    kind = cfg.steer.head
    if kind not in HEADS:
        raise ValueError(f"Expected steer.head among {', '.join(HEADS)}, got {kind!r}.")
    if kind == "auto":
        kind = "probe" if rundir.optional_upstream("train_probe") is not None else "mil"
    if kind == "mil":
        return BagHead(_open(rundir, fold, "train_mil", cfg.steer.mil, BagClassifier, fold.spec))
    if kind == "probe":
        return PooledProbe(_open(rundir, fold, "train_probe", cfg.steer.probe, Probe, fold.spec))
    backbone, layer = open_backbone(cfg), fold.spec.layer
    _require_all_tokens(fold, backbone)
    if kind == "tail":
        if cfg.steer.tail_classes is None:
            raise ValueError("Expected the names of the model's own logits with steer.head=tail: steer.tail_classes.")
        return TailHead(backbone, layer, classes=list(cfg.steer.tail_classes))
    if kind == "tail_probe":
        return TailHead(backbone, layer, _open(rundir, fold, "train_probe", cfg.steer.probe, Probe))
    return TailHead(backbone, layer, _make_zero_shot(cfg, backbone, fold))


def _open(rundir: RunDir, fold: FoldData, task: str, name: str | None, base: type, spec: Any = None) -> Any:
    """Opens an export of a task; of a spec that the fold's must agree with, where one is given."""
    fitted = rundir.trusted_upstream(task, fold.fitted("test"))
    names = sorted(path.name for path in fitted.export_dir.iterdir() if path.is_dir())
    if name is None and len(names) == 1:
        (name,) = names
    if name not in names:
        key = "steer.probe" if base is Probe else "steer.mil"
        raise ValueError(f"Expected {key} to be an export of {fitted.path}, got {name!r}: there are {names}.")
    module, metadata = load_module(fitted.export_dir / name, base)
    if spec is not None:
        remedy = f"Run task={task} on these activations, or give the run of another."
        require_same_spec(spec_of(metadata), str(fitted.export_dir / name), spec, str(fold.folder.path), remedy)
    if module.input_name != "activations":
        require_same_sae(rundir, fitted)
    return module


def _require_all_tokens(fold: FoldData, backbone: Backbone) -> None:
    """Refuses to run the rest of a model from some of a layer's tokens."""
    tokens = fold.spec.tokens
    if tokens != "all" and not (tokens == "patch" and backbone.n_prefix == 0):
        raise ValueError(
            f"Expected all tokens of layer {fold.spec.layer} to run the rest of {fold.spec.model} from, got {tokens} "
            f"in {fold.folder.path}: embed them with backbone.tokens=all and train the SAE on these, or give "
            "steer.head=probe."
        )


def _make_zero_shot(cfg: Any, backbone: Backbone, fold: FoldData) -> ZeroShot:
    zero_shot = cfg.steer.zero_shot
    if not isinstance(backbone, OpenClipBackbone):
        raise ValueError(f"Expected a backbone with a text encoder for steer.head=zero_shot, got {backbone.name}.")
    classes = half_of_classes(fold.classes, cfg.steer.classes)
    templates = imagenet_templates() if zero_shot.templates == "imagenet" else list(zero_shot.templates)
    return zero_shot_of(backbone, classes, templates, dict(zero_shot.texts), zero_shot.renormalize)
