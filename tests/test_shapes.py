import pytest
import torch
from jaxtyping import TypeCheckError

from src.models.mil.base import bag_softmax
from src.models.saes.batch_topk import BatchTopK
from src.ops.losses import mean_squared_error
from src.ops.sparse_latents import SparseLatents
from src.ops.sparse_products import decode_sparse


def test_arguments_that_would_broadcast_are_refused():
    assert mean_squared_error(torch.ones(3, 2), torch.ones(3, 2)) == 0
    with pytest.raises(TypeCheckError, match="'inputs'"):
        mean_squared_error(torch.ones(3, 2), torch.ones(1, 2))


def test_a_dtype_and_a_missing_dimension_are_refused():
    with pytest.raises(TypeCheckError, match="'scores'"):
        bag_softmax(torch.ones(3, 1, dtype=torch.int64), [3])
    with pytest.raises(TypeCheckError, match="'latents'"):
        SparseLatents.from_dense(torch.zeros(3))


def test_sizes_of_other_arguments_and_of_the_object_bind():
    latents = SparseLatents.from_dense(torch.ones(2, 3))
    with pytest.raises(TypeCheckError, match="'W_dec'"):
        decode_sparse(latents, torch.ones(4, 5))
    with pytest.raises(TypeCheckError, match="'inputs'"):
        BatchTopK(4, 8, k=2).centre(torch.ones(3, 5))


def test_a_result_of_another_shape_is_refused():
    sae = BatchTopK(4, 8, k=2)
    sae.b_enc = torch.nn.Parameter(torch.zeros(7))
    with pytest.raises(TypeCheckError, match="return value"):
        _ = sae.encoder_bias
