import numpy as np
import pytest
import torch

from src.analysis.single_neuron import fit_single_neuron
from src.models.mil.classifier import BagClassifier, MaximaRegression


@pytest.mark.parametrize("n_classes", [2, 3])
def test_regression_on_maxima_is_that_of_scikit_learn(n_classes):
    generator = np.random.default_rng(0)
    n_neurons = 1 if n_classes == 2 else n_classes
    maxima, labels = generator.gamma(2.0, size=(40, n_neurons)), np.arange(40) % n_classes
    pipeline = fit_single_neuron(maxima, labels)
    scaler, regression = dict(pipeline.steps).values()
    model = MaximaRegression(n_neurons, n_classes)
    fitted = {"mean": scaler.mean_, "scale": scaler.scale_, "weight": regression.coef_, "bias": regression.intercept_}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in fitted.items()})
    classifier = BagClassifier(model, [str(label) for label in range(n_classes)], "neuron", range(n_neurons))
    for row, expected in zip(maxima, pipeline.predict_proba(maxima), strict=True):
        # The other patches of the bag are below the maximum in every neuron.
        bag = torch.from_numpy(np.stack([row * share for share in (0.5, 1.0, 0.0)]))
        np.testing.assert_allclose(classifier(bag)[0], expected, rtol=1e-9)
