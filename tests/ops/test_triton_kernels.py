import json
import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from src.ops import triton_products
from src.ops.sparse_latents import SparseLatents
from tests.ops.triton_cases import CASES

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Each case's traceback, or None, from a process in which Triton interprets its kernels."""
    path = tmp_path_factory.mktemp("triton") / "outcomes.json"
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-m", "tests.ops.triton_cases", str(path)]
    subprocess.run(command, env=environment, check=True)
    return json.loads(path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_interpreted(name, outcomes):
    if outcomes[name] is not None:
        pytest.fail(outcomes[name], pytrace=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CASES)
def test_compiled(name):
    CASES[name](device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_offsets_beyond_32_bits():
    n_elements = 2**32 + 8
    if torch.cuda.mem_get_info()[0] < 1.2 * 2 * n_elements:
        pytest.skip("needs 11 GB of free GPU memory")
    memory = torch.empty(n_elements, dtype=torch.bfloat16, device="cuda")
    atoms = memory.as_strided((3, 8), (2**31, 1))
    atoms.copy_(torch.arange(24.0).view(3, 8))
    latents = SparseLatents.from_dense(torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]], device="cuda"))
    assert torch.equal(triton_products.decode_rows(latents, atoms), latents.to_dense() @ atoms.float())


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cuda", torch.float32, True),
        ("cuda", torch.bfloat16, True),
        ("cuda", torch.float64, False),
        ("cpu", torch.float32, False),
    ],
)
def test_is_available_for_a_tensor(device, dtype, expected):
    with FakeTensorMode():
        assert triton_products.is_available(torch.empty(2, device=device, dtype=dtype)) == expected


def test_is_not_available_without_triton(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with FakeTensorMode():
        assert not triton_products.is_available(torch.empty(2, device="cuda"))


@pytest.mark.slow
def test_without_triton_only_use_fails():
    script = """
import sys
sys.modules["triton"] = None
import torch
from src.ops import triton_encode, triton_products
from src.ops.sparse_latents import SparseLatents
triton_products.decode_rows(SparseLatents.from_dense(torch.ones(2, 2)), torch.ones(2, 2))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "import of triton halted" in result.stderr
    assert "decode_rows" in result.stderr


def test_refuses_tables_of_another_shape():
    latents = SparseLatents.from_dense(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"Expected atoms \[3, d\], got shape \(2, 4\)"):
        triton_products.decode_rows(latents, torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"Expected rows \[2, d\], got shape \(3, 4\)"):
        triton_products.transposed_product(latents, torch.zeros(3, 4))
    with pytest.raises(ValueError, match="Expected rows and atoms of one width, got 4 and 5"):
        triton_products.kept_dot_products(latents, torch.zeros(2, 4), torch.zeros(3, 5))
