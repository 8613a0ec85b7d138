import numpy as np

from src.analysis.single_neuron import fit_single_neuron


def test_probability_rises_with_the_neuron_and_splits_between_the_classes():
    maxima = np.array([[0.0], [0.1], [0.2], [5.0], [5.2], [5.4]])
    classifier = fit_single_neuron(maxima, [0, 0, 0, 1, 1, 1])
    probabilities = classifier.predict_proba(np.array([[0.0], [2.0], [3.5], [9.0]]))[:, 1]
    assert (np.diff(probabilities) > 0).all()
    assert (probabilities > 0.5).tolist() == [False, False, True, True]


def test_each_class_by_its_own_neuron():
    maxima = np.eye(3).repeat(5, axis=0) + 0.01 * np.arange(15)[:, None]
    classifier = fit_single_neuron(maxima, np.arange(3).repeat(5))
    assert classifier.predict_proba(np.eye(3)).argmax(axis=1).tolist() == [0, 1, 2]
