import numpy as np
import pytest
from PIL import Image

from src.analysis.figure_style import save_figure
from src.analysis.sae_figures import plot_firing_rates, plot_l0, plot_pre_latents, plot_redundancy
from src.metrics.redundancy import random_nearest_cosine


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def bar_heights(axes):
    return sum(bar.get_height() for bar in axes.patches)


def test_firing_rates_count_every_neuron_once():
    density = np.array([0, 0, 1e-6, 5e-4, 0.01, 0.1, 0.5, 1.0])
    figure = plot_firing_rates(density, 10**6, 1e-5, 0.1)
    (axes,) = figure.axes
    assert bar_heights(axes) == len(density)
    assert legend(figure) == [
        "dead: 2 (25.0%)",
        "almost dead, not dead: 1 (12.5%)",
        "dense: 2 (25.0%)",
        "others: 3 (37.5%)",
    ]
    assert [line.get_xdata()[0] for line in axes.lines] == [1e-5, 0.1]
    assert axes.get_title(loc="left") == "8 neurons on 1,000,000 patches"


@pytest.mark.parametrize("density", [np.zeros(3), np.ones(3), np.array([1 / 7, 3 / 7, 0])])
def test_firing_rates_on_few_patches_are_all_on_the_axis(density):
    (axes,) = plot_firing_rates(density, 7, 1e-5, 0.1).axes
    assert bar_heights(axes) == 3
    low, high = axes.get_xlim()
    assert all(low < bar.get_x() and bar.get_x() + bar.get_width() < high for bar in axes.patches if bar.get_height())


def test_l0_names_mean_median_and_percentiles():
    n_rows = np.zeros(200, dtype=int)
    n_rows[[10, 20, 150]] = 30, 65, 5
    figure = plot_l0(n_rows)
    assert legend(figure) == ["5th to 95th percentile 10–20", "mean 23.5, median 20"]
    bars = [patch for patch in figure.axes[0].patches[1:] if patch.get_height() > 0]
    assert sum(bar.get_height() for bar in bars) == pytest.approx(1)


def test_one_l0_for_all_is_one_bar():
    figure = plot_l0(np.array([0, 0, 0, 9]))
    bars = figure.axes[0].patches[1:]
    assert [round(bar.get_x() + bar.get_width() / 2) for bar in bars] == [3]
    assert figure.axes[0].get_xlim()[0] < 0


def test_threshold_is_drawn_where_there_is_one():
    edges, counts, active = np.linspace(-2, 2, 5), np.array([5, 3, 1, 1]), np.array([0, 0, 0, 1])
    kept = ["all pre-latents", "kept as latents (10.00%)"]
    assert legend(plot_pre_latents(edges, counts, active, None)) == kept
    figure = plot_pre_latents(edges, counts, active, np.array([0.5]))
    assert legend(figure) == [*kept, "threshold 0.5"]
    assert figure.axes[0].lines[0].get_xdata()[0] == 0.5
    several = plot_pre_latents(edges, counts, active, np.linspace(0.5, 1.5, 11))
    assert legend(several) == [*kept, "thresholds, 5th to 95th percentile", "median threshold 1"]


def test_redundancy_tells_alike_atoms_from_random_ones():
    figure = plot_redundancy(np.array([0.95, -0.95, 0.3, 0.2]), 0.9, d_in=16)
    assert legend(figure)[2:] == [
        f"random directions, median {random_nearest_cosine(4, 16):.2f}",
        "redundant above 0.9: 50.0%",
    ]


def test_a_saved_figure_is_a_readable_png(tmp_path):
    save_figure(plot_redundancy(np.linspace(-1, 1, 50), 0.9, 8), tmp_path / "redundancy.png")
    with Image.open(tmp_path / "redundancy.png") as image:
        assert min(image.size) > 400


def test_firing_rates_without_limits_tell_dead_neurons_alone_from_others():
    assert legend(plot_firing_rates(np.array([0.0, 0.01, 0.1, 1.0]), 100)) == ["dead: 1 (25.0%)", "others: 3 (75.0%)"]
    assert legend(plot_firing_rates(np.zeros(3), 100)) == ["dead: 3 (100.0%)"]
