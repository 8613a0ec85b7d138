import pytest
import torch

from src.ops.decoder import normalize_rows_, project_gradient_


def test_rows_have_unit_norm_and_zero_rows_stay():
    atoms = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]])
    assert normalize_rows_(atoms) is atoms
    assert torch.allclose(atoms, torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, -1.0]]))


def test_gradient_is_left_across_the_atom_only():
    atoms = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    gradient = torch.tensor([[1.0, 0.0], [2.0, 5.0]])
    project_gradient_(gradient, atoms)
    # 1 - 0.6 * 0.6 = 0.64 and 0 - 0.6 * 0.8 = -0.48
    assert torch.allclose(gradient, torch.tensor([[0.64, -0.48], [0.0, 5.0]]))


def test_gradient_is_left_across_atoms_of_any_length():
    atoms = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    gradient = torch.tensor([[1.0, 0.0], [2.0, 5.0]])
    project_gradient_(gradient, atoms, is_unit_norm=False)
    # The same as along [0.6, 0.8]; a zero atom has no direction to remove.
    assert torch.allclose(gradient, torch.tensor([[0.64, -0.48], [2.0, 5.0]]))


@pytest.mark.parametrize("n_rows", [0, 1, 1024, 1025, 2500])
@pytest.mark.parametrize("is_unit_norm", [True, False])
def test_pieces_equal_the_whole(n_rows, is_unit_norm):
    generator = torch.Generator().manual_seed(0)
    atoms, gradient = (torch.randn(n_rows, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    if is_unit_norm:
        normalize_rows_(atoms)
    along = (gradient * atoms).sum(1, keepdim=True) / atoms.square().sum(1, keepdim=True)
    expected = gradient - along * atoms
    assert project_gradient_(gradient, atoms, is_unit_norm=is_unit_norm) is gradient
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close((gradient * atoms).sum(1), torch.zeros(n_rows, dtype=torch.float64))


def test_atoms_are_scaled_without_a_graph_and_left_by_the_projection():
    atoms = torch.nn.Parameter(torch.randn(3, 2, generator=torch.Generator().manual_seed(0)))
    normalize_rows_(atoms)
    before = atoms.detach().clone()
    project_gradient_(torch.ones(3, 2), atoms)
    assert atoms.is_leaf
    assert torch.equal(atoms, before)
