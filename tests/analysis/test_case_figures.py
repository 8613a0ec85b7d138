import numpy as np

from src.analysis.case_figures import plot_case_heatmap
from src.analysis.figure_style import save_figure


def make(n_cases=24, n_neurons=12, seed=0):
    generator = np.random.default_rng(seed)
    labels = [["acute", "benign", "chronic"][case % 3] for case in range(n_cases)]
    neuron_labels = sorted(["acute", "benign", "chronic"][neuron % 3] for neuron in range(n_neurons))
    values = generator.random((n_cases, n_neurons)) * 0.4
    values += 2 * (np.array(labels)[:, None] == np.array(neuron_labels)) * generator.random((n_cases, n_neurons))
    return (
        values,
        [f"patient {case:02d}" for case in range(n_cases)],
        labels,
        list(range(100, 100 + n_neurons)),
        neuron_labels,
    )


def shown(figure):
    return next(axes for axes in figure.axes if axes.images)


def test_rows_are_grouped_by_label_and_scaled_by_neuron(tmp_path):
    values, case_ids, labels, neuron_ids, neuron_labels = make()
    figure = plot_case_heatmap(values, case_ids, labels, neuron_ids, neuron_labels)
    image = np.asarray(shown(figure).images[0].get_array())
    assert image.shape == values.shape
    np.testing.assert_allclose(image.max(axis=0), 1)
    names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    of_rows = [labels[case_ids.index(name)] for name in names]
    assert of_rows == sorted(labels)
    save_figure(figure, tmp_path / "cases.png")


def test_silent_neurons_single_cases_and_many_of_them_draw(tmp_path):
    values, case_ids, labels, neuron_ids, neuron_labels = make(200, 90)
    values[:, 3] = 0
    labels[0] = "alone"
    figure = plot_case_heatmap(values, case_ids, labels, neuron_ids, neuron_labels)
    assert not np.asarray(shown(figure).images[0].get_array())[:, neuron_labels.index("acute") + 3].any()
    save_figure(figure, tmp_path / "many.png")
