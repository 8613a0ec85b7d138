import json

import numpy as np
import pytest
import torch

from src.stores.concept_files import (
    ImageConcepts,
    concepts_path,
    ranking_path,
    read_concept_ranking,
    read_concepts,
    write_concept_ranking,
    write_concepts,
)


def test_strengths_come_back_and_are_what_the_published_programs_read(tmp_path):
    path = concepts_path(tmp_path, "ham10000", "val")
    assert path.name == "sae_concepts_ham10000_val_global.pth"
    concepts = ImageConcepts(np.eye(3, 5, dtype=np.float32), np.array([0, 6, -1]), ("a", "b", "c"))
    write_concepts(path, concepts)
    found = read_concepts(path, n_classes=7)
    np.testing.assert_array_equal(found.strengths, concepts.strengths)
    assert found.labels.tolist() == [0, 6, -1]
    assert found.paths == ("a", "b", "c")
    stored = torch.load(path, weights_only=True)
    assert set(stored) == {"sae_concepts", "labels", "img_paths"}
    assert stored["sae_concepts"][stored["labels"] == 6].shape == (1, 5)
    with pytest.raises(ValueError, match="labels below 5"):
        read_concepts(path, n_classes=5)


def test_a_ranking_comes_back(tmp_path):
    path = ranking_path(tmp_path, "val", "all")
    assert path == tmp_path / "class_wise_concepts" / "val" / "top_k_concepts_class=all.json"
    write_concept_ranking(path, np.array([7, 2]), np.array([0.5, 0.25]))
    assert json.loads(path.read_text())[0] == {"rank": 0, "index": 7, "importance": 0.5}
    neuron_ids, importance = read_concept_ranking(path)
    assert (neuron_ids.tolist(), importance.tolist()) == ([7, 2], [0.5, 0.25])


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="ranking of concepts"):
        read_concept_ranking(tmp_path / "r.json")
    for content in ("[1, 2]", "{", '[{"rank": 0}]'):
        (tmp_path / "r.json").write_text(content)
        with pytest.raises(ValueError, match="rank, index and importance"):
            read_concept_ranking(tmp_path / "r.json")
    write_concept_ranking(tmp_path / "r.json", [1, 1], [2, 1])
    with pytest.raises(ValueError, match="each neuron once"):
        read_concept_ranking(tmp_path / "r.json")
    torch.save({"labels": 1}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match="sae_concepts, labels, img_paths"):
        read_concepts(tmp_path / "c.pth")
    torch.save({"sae_concepts": torch.eye(2), "labels": torch.zeros(1), "img_paths": ["a", "b"]}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match="a label and a path"):
        read_concepts(tmp_path / "c.pth")
