import pytest
import torch

from src.ops import triton_encode, triton_products, triton_screening
from src.ops.sparse_latents import SparseLatents

pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, mangle_type

# Triton's compiler and its assembler need no GPU: they refuse what the interpreter lets pass (types above all).
_HOPPER = GPUTarget("cuda", 90, 32)


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Turns launches into compilations; returns the machine code of each kernel by its name."""
    machine_code = {}

    def compile_(kernel, *arguments, grid, warmup, **constants):
        by_name = dict(zip(kernel.arg_names, arguments, strict=False)) | constants
        options = {name: by_name.pop(name) for name in list(by_name) if name not in kernel.arg_names}
        # As at a launch: constants, nothing, and the number 1 are compiled in.
        fixed = {
            parameter.name: value
            for parameter, value in ((parameter, by_name[parameter.name]) for parameter in kernel.params)
            if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1)
        }
        types = {name: "constexpr" if name in fixed else mangle_type(value) for name, value in by_name.items()}
        code = triton.compile(ASTSource(kernel, types, fixed), target=_HOPPER, options=options)
        machine_code[kernel.__name__] = code.asm["cubin"]

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(JITFunction, "run", compile_)
    # Nothing is computed, and a number of entries is read between two launches.
    monkeypatch.setattr(torch, "empty", torch.zeros)
    return machine_code


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64], ids=["int32", "int64"])
def test_products_compile(compiled, dtype, id_dtype):
    latents = SparseLatents.from_dense(torch.ones(40, 20, dtype=dtype))
    latents = SparseLatents(latents.row_offsets, latents.neuron_ids.to(id_dtype), latents.values, latents.shape)
    rows, atoms = torch.zeros(40, 96, dtype=dtype), torch.zeros(20, 96, dtype=dtype)
    triton_products.decode_rows(latents, atoms)
    triton_products.transposed_product(latents, rows)
    triton_products.kept_dot_products(latents, rows, atoms)
    assert set(compiled) == {"decode_kernel", "transposed_kernel", "add_spans_kernel", "dot_products_kernel"}
    assert all(compiled.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("k", [1, 5])
def test_selection_compiles(compiled, dtype, k):
    pre_latents = torch.zeros(4, 96, dtype=dtype)
    triton_encode.row_top_k(pre_latents, k)
    assert set(compiled) == {"row_bound_kernel", "count_kernel", "write_kernel", "keep_largest_kernel"}
    triton_encode.entries_above(pre_latents.T, torch.zeros(4))
    assert all(compiled.values())


def test_screening_compiles(compiled):
    rows, weights = torch.zeros(300, 192, dtype=torch.bfloat16), torch.zeros(500, 192, dtype=torch.bfloat16)
    for bounds in (None, torch.zeros(300)):
        triton_screening.reaching(rows, weights, bounds, 100)
    for n_groups in (3, 100, 500):
        triton_screening.group_maxima(rows, weights, n_groups)
    assert set(compiled) == {"reaching_kernel", "group_maxima_kernel"}
    assert all(compiled.values())
