import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from src.analysis.figure_style import GREY, VERMILLION
from src.analysis.froc import Detections
from src.analysis.methods import SINGLE
from src.analysis.patch_figures import Exemplar, choose_exemplars, plot_exemplars, plot_froc, plot_patch_curves


def test_exemplars_are_the_best_of_several_slides():
    assert choose_exemplars(list("aaabac"), n=4, max_per_item=2) == [0, 1, 3, 5]
    assert choose_exemplars(list("aaabac"), n=3, max_per_item=2) == [0, 1, 3]
    assert choose_exemplars(list("aaabac"), n=10, max_per_item=1) == [0, 3, 5]
    assert choose_exemplars([], n=10, max_per_item=1) == []


def test_frames_tell_outlined_patches():
    pixels = np.zeros((4, 4, 3), np.uint8)
    row = [Exemplar(pixels, "a", True), Exemplar(pixels, "b", False)]
    figure = plot_exemplars([("Neuron 3", row), ("Neuron 5", row[:1])])
    first, second, third, _ = (axes for strip in figure.subfigs for axes in strip.axes)
    assert to_hex(first.spines["left"].get_edgecolor()) == VERMILLION.lower()
    assert to_hex(second.spines["left"].get_edgecolor()) == GREY
    assert third.get_xlabel() == "a"


def test_no_exemplars_are_an_error():
    with pytest.raises(ValueError, match="silent on all slides"):
        plot_exemplars([("Neuron 3", [])])


def test_patch_curves_order_methods_by_auroc():
    patches = pd.DataFrame(
        {
            "item_id": list("aabb"),
            "label": [True, False, True, False],
            "channel": [0.0, 1.0, 0.0, 1.0],
            "neuron": [1.0, 0.0, 2.0, 0.0],
        }
    )
    figure = plot_patch_curves(patches, {name: SINGLE[name] for name in ("channel", "neuron")})
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["1.000 / 1.000  Best neuron", "0.000 / 0.500  Best raw channel"]


def test_froc_names_the_better_method_first():
    good = Detections(np.array([2.0, 3.0]), np.array([0, 1]), np.array([1.0]), np.array([1]), 2)
    bad = Detections(np.array([-np.inf, 0.5]), np.array([0, 1]), np.array([1.0, 2.0]), np.array([1, 0]), 2)
    figure = plot_froc({"channel": bad, "neuron": good}, SINGLE)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    # Of the bad one's lesions half are found, from one false detection a slide on.
    assert labels == ["1.000  Best neuron", "0.333  Best raw channel"]
