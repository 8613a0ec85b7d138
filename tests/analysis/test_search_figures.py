"""Figures of searches show the best so far, and the trials that no other beats in order."""

from src.analysis.search_figures import plot_history, plot_pareto


def test_the_best_so_far_follows_the_direction():
    for maximize, expected in ((True, [2, 2, 3]), (False, [2, 1, 1])):
        (axes,) = plot_history([0, 1, 4], [2.0, 1.0, 3.0], "val/fvu", maximize).axes
        assert list(axes.lines[0].get_ydata()) == expected
        assert axes.get_ylabel() == "val/fvu"


def test_the_front_is_drawn_in_order_with_the_numbers_of_its_trials():
    figure = plot_pareto([4.0, 1.0, 2.0], [3.0, 1.0, 0.5], [True, True, False], [7, 8, 9], ("L0", "variance"))
    (axes,) = figure.axes
    assert list(axes.lines[0].get_xdata()) == [1, 4]
    assert {text.get_text() for text in axes.texts} == {"7", "8"}
