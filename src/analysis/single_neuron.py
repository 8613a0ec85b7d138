"""A slide classifier that looks at one neuron per class: logistic regression on its maximum over the slide."""

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler


def fit_single_neuron(maxima: np.ndarray, labels: Sequence[int]) -> Pipeline:
    """Fits the classifier; `predict_proba(maxima)` gives [n_slides, n_classes].

    The regression only puts the neuron on the scale of probabilities and finds its threshold: with one neuron the
    ranking of slides is the neuron's own. Scikit-learn's default L2 penalty (C = 1) on standardised maxima keeps the
    probabilities finite when the classes are apart.

    Args:
        maxima: [n_slides, n_neurons] maxima of train slides.
        labels: the class index of each.
    """
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(maxima, labels)
