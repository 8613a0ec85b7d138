"""The study of two centres on planted neurons: neuron 0 marks the stain, and neuron 1 tumour or nothing."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from experiments.quickstart import two_centers
from experiments.quickstart.two_centers import Slide, study, summarize


@pytest.fixture(autouse=True)
def _activations_are_the_neurons(monkeypatch):
    sae = SimpleNamespace(encode=lambda rows: SimpleNamespace(to_dense=lambda: rows.clamp_min(0)))
    monkeypatch.setattr(two_centers, "train_sae", lambda rows, seed: sae)


def planted_bank(tumor_strength, n_slides=80, n_patches=20, d_in=8):
    rng = np.random.default_rng(0)

    def slide(has_tumor):
        is_tumor = np.arange(n_patches) < (4 if has_tumor else 0)
        activations = rng.standard_normal((2, n_patches, d_in))
        activations[1, :, 0] += 4
        activations[:, is_tumor, 1] += tumor_strength
        return Slide(activations.astype(np.float32), is_tumor)

    return {label: [slide(label == 1) for _ in range(n_slides)] for label in (0, 1)}


def by_ranking(bank, seed):
    return pd.DataFrame(study(bank, seed)).set_index(["pool", "ranking"])


def test_the_tumor_neuron_is_selected_within_centers():
    found = by_ranking(planted_bank(tumor_strength=6), seed=0)
    for pool in ("max", "mean"):
        adjusted = found.loc[(pool, "adjusted")]
        assert adjusted["neuron_id"] == 1
        assert adjusted["is_found"]
        assert adjusted["is_tumor"]
        assert not adjusted["is_stain"]


def test_where_tumor_cannot_be_seen_the_stain_is_selected_unless_adjusted_for():
    found = by_ranking(planted_bank(tumor_strength=0), seed=0)
    for pool in ("max", "mean"):
        unadjusted, adjusted = found.loc[(pool, "unadjusted")], found.loc[(pool, "adjusted")]
        assert unadjusted["neuron_id"] == 0
        assert unadjusted["is_found"]
        assert unadjusted["is_stain"]
        assert not adjusted["is_found"]


def test_what_is_not_significant_is_not_selected():
    rows = [(0, True, True, False), (1, False, True, False), (2, True, False, True), (3, False, False, True)]
    table = pd.DataFrame(rows, columns=["seed", "is_found", "is_stain", "is_tumor"])
    table = table.assign(pool="max", ranking="adjusted", tumor_auroc=0.5, center_auroc=0.5)
    (summary,) = summarize(table).to_dict("records")
    assert summary["n_seeds"] == 4
    assert summary["n_found"] == 2
    assert (summary["n_selects_stain"], summary["n_selects_tumor"], summary["n_first_is_stain"]) == (1, 1, 2)
