"""The published numbers, and our own beside them."""

import pandas as pd
import pytest

from experiments.sae_1n.tables import PUBLISHED, collect
from src import config
from src.analysis.published_table import read_published

config.register_resolvers()
STUDIES = sorted(path.stem for path in PUBLISHED.glob("*.csv"))


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_has_nine_published_methods_and_a_preset_that_names_them(study):
    published = read_published(PUBLISHED / f"{study}.csv")
    assert published.groupby("metric").size().to_dict() == {"accuracy": 9, "auroc": 9}
    assert published["mean"].between(0.5, 1).all()
    assert published["sd"].isna().all() == study.startswith("panda")
    cfg = config.compose([f"exp={study}"])
    assert (cfg.name, cfg.summary.published) == (study, f"experiments/sae_1n/published/{study}.csv")
    assert cfg.splits.shuffle == "legacy"
    assert cfg.splits.seed == 42


@pytest.mark.parametrize(
    ("study", "expansion", "k"),
    [
        ("camelyon16_conch", 4, 16),
        ("camelyon16_uni", 4, 32),
        ("camelyon16_resnet50", 2, 32),
        ("panda_karolinska", 4, 16),
    ],
)
def test_sae_sizes_are_the_published_ones(study, expansion, k):
    cfg = config.compose([f"exp={study}"])
    assert (cfg.sae.expansion, cfg.sae.k) == (expansion, k)


def test_our_numbers_stand_beside_the_published_ones(tmp_path):
    folder = tmp_path / "camelyon16_conch" / "mil-sae1n" / "summarize_cv" / "analysis"
    folder.mkdir(parents=True)
    row = {"method": "MaxMIL", "accuracy": 0.91, "accuracy_sd": 0.02, "accuracy_published": 0.935}
    row |= {"accuracy_published_sd": 0.0277, "auroc": 0.9, "auroc_sd": 0.02, "auroc_published": 0.9662}
    row |= {"auroc_published_sd": 0.0111}
    pd.DataFrame([row]).to_csv(folder / "table.csv", index=False)
    table = collect(tmp_path, ["camelyon16_conch"]).set_index("metric")
    assert table["within_sd"].to_dict() == {"accuracy": True, "auroc": False}
    assert table.loc["auroc", "published"] == 0.9662
    with pytest.raises(FileNotFoundError, match="found none"):
        collect(tmp_path, ["panda_conch"])
