import pytest
import torch

from src.ops.sparse_latents import SparseLatents
from src.ops.steering import add, decoded_offsets, edit_dense, keep, neuron_mask, remove, scale, set_to

LATENTS = torch.tensor([[1.0, 0.0, 3.0, 0.0], [0.0, 2.0, 0.0, 4.0]])
MEANS = torch.tensor([0.1, 0.2, 0.3, 0.4])


def test_edits_by_hand():
    edits = {
        "keep": (keep([2], 4), [[0, 0, 3, 0], [0, 0, 0, 0]]),
        "keep, means": (keep([2, 3], 4, MEANS), [[0.1, 0.2, 3, 0], [0.1, 0.2, 0, 4]]),
        "remove": (remove([2], 4), [[1, 0, 0, 0], [0, 2, 0, 4]]),
        "remove, means": (remove([2], 4, MEANS), [[1, 0, 0.3, 0], [0, 2, 0.3, 4]]),
        "scale": (scale([0, 3], 4, 2.5), [[2.5, 0, 3, 0], [0, 2, 0, 10]]),
        "set": (set_to([1], 4, MEANS), [[1, 0.2, 3, 0], [0, 0.2, 0, 4]]),
        "add": (add([1, 2], 4, MEANS), [[1, 0.2, 3.3, 0], [0, 2.2, 0.3, 4]]),
    }
    for name, (edit, expected) in edits.items():
        torch.testing.assert_close(edit_dense(LATENTS, edit), torch.tensor(expected).float(), msg=name)


def test_donors_stand_where_latents_were_taken_away():
    donors = torch.tensor([[9.0, 8.0, 7.0, 6.0], [5.0, 4.0, 3.0, 2.0]])
    kept = edit_dense(LATENTS, keep([2], 4, resamples=True), donors=donors)
    assert kept.tolist() == [[9, 8, 3, 6], [5, 4, 0, 2]]
    removed = edit_dense(LATENTS[:, [2, 0]], remove([2], 4, MEANS, resamples=True), [2, 0], donors[:, [2, 0]])
    assert removed.tolist() == [[7, 1], [3, 0]]
    with pytest.raises(ValueError, match="give donors"):
        edit_dense(LATENTS, keep([2], 4, resamples=True))


def test_neurons_out_of_range_are_refused():
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match=f"within 0:4, got {wrong}"):
            neuron_mask([0, wrong], 4)


def test_edits_that_do_the_same_have_one_key():
    nothing = {keep(range(4), 4).key, remove([], 4, MEANS).key, scale([], 4, 3.0).key}
    assert len(nothing) == 1
    assert keep([0, 1], 4).key == remove([3, 2], 4).key != keep([0, 1], 4, MEANS).key
    assert len({remove([0], 4).key, scale([0], 4, 2.0).key, remove([0], 4, resamples=True).key}) == 3


def test_offsets_are_decoded_once_an_edit():
    atoms = torch.arange(8.0).view(4, 2)
    found = decoded_offsets([keep([2], 4, MEANS), remove([1, 3], 4, MEANS)], atoms)
    of_rest = 0.1 * atoms[0] + 0.2 * atoms[1] + 0.4 * atoms[3]
    torch.testing.assert_close(found, torch.stack([of_rest, 0.2 * atoms[1] + 0.4 * atoms[3]]))


def test_entries_of_changed_neurons_are_found():
    touched = remove([0, 3], 4).touches(SparseLatents.from_dense(LATENTS))
    assert touched.tolist() == [True, False, False, True]
