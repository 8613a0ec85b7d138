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
