import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.metrics.redundancy import nearest_atoms, random_nearest_cosine


def test_opposite_atoms_are_alike_and_keep_their_sign():
    atoms = torch.tensor([[2.0, 0.0], [1.0, 1.0], [-3.0, 0.1], [0.0, 0.0]])
    nearest = nearest_atoms(atoms)
    assert nearest.neuron_id.tolist()[:3] == [2, 0, 0]
    norm = (9 + 0.01) ** 0.5
    assert nearest.cosine.tolist() == pytest.approx([-3 / norm, 0.5**0.5, -3 / norm, 0], abs=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 40), st.integers(1, 8), st.integers(0, 1000), st.integers(1, 4000))
def test_agrees_with_all_cosines_at_once_for_any_block(n_latents, d_in, seed, block_bytes):
    atoms = torch.randn(n_latents, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    nearest = nearest_atoms(atoms, block_bytes)
    unit = torch.nn.functional.normalize(atoms)
    cosines = unit @ unit.T
    expected = cosines.abs().fill_diagonal_(-1).amax(1)
    assert torch.allclose(nearest.cosine.abs(), expected)
    assert torch.allclose(cosines[torch.arange(n_latents), nearest.neuron_id], nearest.cosine)
    assert not bool((nearest.neuron_id == torch.arange(n_latents)).any())


def test_refuses_a_single_atom():
    with pytest.raises(ValueError, match="two atoms to compare, got 1"):
        nearest_atoms(torch.ones(1, 3))


@pytest.mark.parametrize(("n_atoms", "d_in"), [(100, 16), (30, 2)])
def test_what_random_directions_would_give(n_atoms, d_in):
    generator = torch.Generator().manual_seed(0)
    drawn = [nearest_atoms(torch.randn(n_atoms, d_in, generator=generator)).cosine.abs() for _ in range(100)]
    assert random_nearest_cosine(n_atoms, d_in) == pytest.approx(float(torch.cat(drawn).median()), abs=0.005)


def test_on_a_line_all_directions_are_one():
    assert random_nearest_cosine(5, 1) == 1
