import pytest
import torch
import torch.nn.functional as F

from src.models.zero_shot import ZeroShot, half_of_classes, imagenet_templates, prompt_names, text_features

SPACE = {"a cat": [3.0, 0.0], "the cat": [0.0, 2.0], "a dog": [-1.0, 0.0], "the dog": [-5.0, 0.0]}


def encode(texts):
    return torch.tensor([SPACE[text] for text in texts])


def test_prompts_of_a_class_are_averaged_and_normalised_again_or_not():
    templates = ["a {}", "the {}"]
    plain = text_features(encode, ["cat", "dog"], templates, is_renormalized=False)
    assert torch.allclose(plain, torch.tensor([[0.5, 0.5], [-1.0, 0.0]]))
    assert torch.allclose(text_features(encode, ["cat", "dog"], templates).norm(dim=1), torch.ones(2))


def test_logits_are_scaled_cosines():
    texts = F.normalize(torch.tensor([[1.0, 1.0], [1.0, 0.0]]), dim=1)
    logits = ZeroShot(texts, 10.0, ["x", "y"])(torch.tensor([[0.0, 7.0]]))
    assert torch.allclose(logits, torch.tensor([[10 * 0.5**0.5, 0.0]]))


def test_published_templates_and_halves():
    templates = imagenet_templates()
    assert len(templates) == 80
    assert "itap of a {}." in templates
    assert half_of_classes(["a", "b", "c"], "base") == ("a",)
    assert half_of_classes(["a", "b", "c"], "novel") == ("b", "c")
    assert half_of_classes(["a", "b", "c"], "all") == ("a", "b", "c")


def test_wrong_texts_are_refused():
    with pytest.raises(ValueError, match="in place of the class, got \\['a cat'\\]"):
        text_features(encode, ["cat"], ["a cat", "a {}"])
    with pytest.raises(ValueError, match="got none"):
        text_features(encode, ["cat"], [])
    with pytest.raises(ValueError, match=r"among \['cat'\], got some for \['dog'\]"):
        prompt_names(["cat"], {"dog": "a dog"})
    with pytest.raises(ValueError, match="got 'new'"):
        half_of_classes(["a"], "new")
    with pytest.raises(ValueError, match="one text feature a class, got 2 for 1"):
        ZeroShot(torch.ones(2, 3), 1.0, ["a"])


def test_names_in_prompts():
    assert prompt_names(["polar_bear", "gun"], {"gun": "revolver"}) == ["polar bear", "revolver"]
