"""Presets of published studies run their whole pipeline on miniatures of their data, with a small random backbone."""

import pytest

from src import config
from src.runs.execution import execute
from tests.data.images import miniatures

pytestmark = pytest.mark.slow

SMALL = (
    *("backbone=random_vit_tiny", "backbone.image_size=32", "trainer=cpu"),
    *("splits.n_folds=2", "sae.expansion=1", "train.epochs=1", "train.total_rows=null", "train.batch_size=8"),
    *("mil.methods=[neuron]", "summary.n_bootstrap=10", "embed.batch_size=16", "probe.max_epochs=5"),
    *("steer.head=probe", "steer.sizes=[1,2]", "steer.n_controls=1", "steer.n_single=0", "steer.side_effects=false"),
)
POOLED = (
    "backbone.tokens=pooled",
)  # of the output, as the embeddings of CLIP, which a random ViT has no projection for
# The miniature, and what a random backbone has no equal of.
PRESETS = {
    "mll23_dinobloom": ("mll23", ()),
    "hehr_dinobloom": ("hehr", ()),
    "imagenet_clip_vitb16": ("imagenet", ()),
    "vindr_mammoclip": ("vindr_mammo_png", ()),
    "ham10000_mammoclip": ("ham10000", ()),
    "ham10000_dermlip": ("ham10000", ()),
    "chexpert_medclip": ("chexpert", POOLED),
    "mimic_medclip": ("mimic_cxr", POOLED),
    "cc3m_clip_rn50": ("cc3m_img2dataset", POOLED),
}

OF_LABELS = {"select_neurons", "train_probe", "steer"}


@pytest.mark.parametrize("exp", PRESETS)
def test_a_preset_runs_its_pipeline_on_a_miniature_of_its_data(exp, tmp_path, monkeypatch):
    getattr(miniatures, PRESETS[exp][0])(tmp_path / "images")
    typed = [f"exp={exp}", *SMALL, *PRESETS[exp][1], f"dataset.dir={tmp_path / 'images'}", "task=pipeline"]
    typed += [f"paths.{name}={tmp_path / name}" for name in ("data", "runs", "cache")]
    config.register_resolvers()
    monkeypatch.setattr(config, "hydra_overrides", lambda: typed)  # the pipeline asks what was typed
    execute(config.compose(typed), typed)
    done = {path.parent.name for path in tmp_path.glob(f"runs/{exp}/**/manifest.json")}
    assert {"train_sae", "evaluate_sae", "encode", "summarize_latents"} <= done
    assert OF_LABELS & done == (set() if exp == "cc3m_clip_rn50" else OF_LABELS)
