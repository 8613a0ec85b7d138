import pandas as pd

from src.analysis.confusion_figure import plot_confusion


def test_shades_are_shares_of_rows_and_numbers_counts():
    counts = pd.DataFrame([[3, 1], [0, 0]], index=["cat", "dog"], columns=["cat", "dog"])
    figure = plot_confusion(counts, "Probe")
    axes = figure.axes[0]
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0.0, 0.0]]
    assert [text.get_text() for text in axes.texts] == ["3", "1", "0", "0"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Predicted", "True class")


def test_outcomes_of_labels_and_many_classes():
    outcomes = pd.DataFrame([[1, 2, 3, 4]], index=["mass"], columns=["a", "b", "c", "d"])
    assert plot_confusion(outcomes).axes[0].get_ylabel() == "Label"
    names = [str(number) for number in range(40)]
    assert not plot_confusion(pd.DataFrame(1, index=names, columns=names)).axes[0].texts
