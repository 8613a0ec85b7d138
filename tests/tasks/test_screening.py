"""What `train.screening` means on a device, at a precision and for a size."""

import pytest
import torch
from omegaconf import OmegaConf

from src.models.saes.topk import TopK
from src.ops import screening
from src.tasks.upstream_sae import chooses_screening


@pytest.mark.parametrize(
    ("setting", "fast", "changes", "expected"),
    [
        ("auto", True, {}, True),
        ("auto", False, {}, False),
        ("off", True, {}, False),
        (False, True, {}, False),
        ("on", False, {}, True),
        (True, False, {}, True),
        ("auto", True, {"trainer": {"precision": "bf16-mixed"}}, False),
        ("on", True, {"trainer": {"precision": "16-mixed"}}, False),
        ("auto", True, {"trainer": {"precision": 32}}, True),
        ("auto", True, {"train": {"compile_backend": "inductor"}}, False),
    ],
)
def test_screening_is_chosen_by_device_precision_and_size(monkeypatch, setting, fast, changes, expected):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: fast)
    cfg = {"train": {"screening": setting, "compile_backend": None}, "trainer": {"precision": "32-true"}}
    cfg = OmegaConf.merge(cfg, changes)
    assert chooses_screening(cfg, TopK(1024, 1024, k=4), torch.device("cpu")) is expected


def test_small_saes_do_not_screen(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert not screening.is_worthwhile(torch.device("cpu"), 16, 64)
    assert screening.is_worthwhile(torch.device("cpu"), 1024, 1024)
    assert not screening.is_worthwhile(torch.device("mps"), 1024, 1024)
