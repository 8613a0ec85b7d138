import numpy as np
import pandas as pd
import pytest

from src.analysis.figure_style import save_figure
from src.analysis.neuron_figure import plot_neurons


def make(n):
    generator = np.random.default_rng(0)
    n_items = generator.integers(0, 50, n)
    return pd.DataFrame(
        {
            "neuron_id": np.arange(n),
            "n_items": n_items,
            "item_frequency": n_items / 50,
            "mean_active": np.where(n_items > 0, generator.gamma(2, size=n), np.nan),
            "label_entropy": np.where(n_items > 0, generator.random(n), np.nan),
        }
    )


@pytest.mark.parametrize("has_labels", [True, False])
def test_neurons_that_fire_are_drawn(tmp_path, has_labels):
    table = make(200)
    figure = plot_neurons(table if has_labels else table.drop(columns="label_entropy"))
    (points,) = figure.axes[0].collections
    assert len(points.get_offsets()) == (table["n_items"] > 0).sum()
    assert len(figure.axes) == 1 + has_labels
    save_figure(figure, tmp_path / "neurons.png")


def test_neurons_that_never_fire_draw_an_empty_figure(tmp_path):
    table = make(5).assign(n_items=0)
    save_figure(plot_neurons(table), tmp_path / "neurons.png")
