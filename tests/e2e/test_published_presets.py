"""The presets of published studies run their whole pipeline on miniatures of their data, with a small random backbone."""

import json

import pytest

from src import config
from src.runs.execution import execute
from tests.data.images import miniatures

pytestmark = pytest.mark.slow

SMALL = (
    *("backbone=random_vit_tiny", "backbone.image_size=32", "trainer=cpu"),
    *("splits.n_folds=2", "sae.expansion=1", "train.epochs=1", "train.total_rows=null", "train.batch_size=8"),
    *("mil.methods=[neuron]", "summary.n_bootstrap=10", "embed.batch_size=16", "steer.head=probe"),
)
# The miniature, and what a random backbone has no equal of.
PRESETS = {
    "mll23_dinobloom": ("mll23", ()),
}


@pytest.mark.parametrize("exp", PRESETS)
def test_a_preset_runs_on_a_miniature_of_its_data(exp, tmp_path, monkeypatch):
    miniature, overrides = PRESETS[exp]
    getattr(miniatures, miniature)(tmp_path / "images")
    typed = [f"exp={exp}", *SMALL, *overrides, f"dataset.dir={tmp_path / 'images'}", "task=pipeline"]
    typed += [f"paths.data={tmp_path / 'data'}", f"paths.runs={tmp_path / 'runs'}", f"paths.cache={tmp_path / 'cache'}"]
    config.register_resolvers()
    monkeypatch.setattr(config, "hydra_overrides", lambda: typed)  # the pipeline asks what was typed
    execute(config.compose(typed), typed)
    done = {path.parent.name for path in tmp_path.glob(f"runs/{exp}/**/manifest.json")}
    assert {"train_sae", "evaluate_sae", "summarize_latents"} <= done
