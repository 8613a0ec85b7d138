import numpy as np
import pytest

from src.stores.patch_scores import PatchScores, read_patch_scores, write_patch_scores


def scores(n_rows, n_branches, has_instances):
    rng = np.random.default_rng(n_rows)
    attention = rng.random((n_rows, n_branches)).astype(np.float32) if n_branches else None
    instances = rng.normal(size=(n_rows, 2)).astype(np.float32) if has_instances else None
    return PatchScores(("normal", "tumor"), attention, instances)


@pytest.mark.parametrize(("n_branches", "has_instances"), [(1, True), (2, False), (0, True)])
def test_what_is_written_is_read(tmp_path, n_branches, has_instances):
    written = {name: scores(n, n_branches, has_instances) for name, n in {"b": 3, "a": 1, "007": 5}.items()}
    write_patch_scores(tmp_path / "max.h5", written, ("normal", "tumor"))
    read = read_patch_scores(tmp_path / "max.h5")
    assert list(read) == ["b", "a", "007"]
    for item_id, one in written.items():
        assert read[item_id].classes == one.classes
        np.testing.assert_array_equal(read[item_id].attention, one.attention)
        np.testing.assert_array_equal(read[item_id].instance_logits, one.instance_logits)


def test_a_class_has_its_own_branch_or_the_only_one():
    attention = np.array([[0.1, 0.6], [0.9, 0.4]])
    own = PatchScores(("normal", "tumor"), attention, None)
    assert own.attention_of("tumor").tolist() == [0.6, 0.4]
    assert PatchScores(("normal", "tumor"), attention[:, :1], None).attention_of("tumor").tolist() == [0.1, 0.9]
    assert own.instance_scores_of("tumor") is None


def test_instance_scores_are_log_odds_by_hand():
    logits = np.log([[1.0, 2.0, 1.0], [3.0, 1.0, 1.0]])
    scores = PatchScores(("a", "b", "c"), None, logits)
    np.testing.assert_allclose(scores.instance_scores_of("b"), [0.0, np.log(1 / 4)], atol=1e-12)


def test_a_missing_file_says_what_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="task=train_mil"):
        read_patch_scores(tmp_path / "none.h5")
