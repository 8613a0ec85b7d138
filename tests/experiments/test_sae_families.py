import numpy as np
import pytest

from experiments.sae_families.tokens import load_model, tokens_of


@pytest.mark.realdata
def test_tokens_equal_the_reference(data_dir):
    model = load_model(data_dir / "weights" / "mobilenetv2_035_imagenet.safetensors")
    reference = np.load(data_dir / "weights" / "mobilenetv2_035_reference.npz")
    tokens = tokens_of(model, reference["images"])
    expected = reference["tokens"].reshape(*reference["tokens"].shape[:2], -1).transpose(0, 2, 1)
    # An independent implementation agrees with the reference to 7e-5.
    np.testing.assert_allclose(tokens, expected, rtol=0, atol=1.5e-4)
