import numpy as np
import pytest
import torch

from src.metrics.histogram import Histogram
from src.metrics.inference import InferenceMetrics, pre_latent_histograms
from src.models.saes.batch_topk import BatchTopK
from src.models.saes.topk import TopK


@pytest.fixture
def sae():
    torch.manual_seed(0)
    sae = BatchTopK(d_in=5, n_latents=12, k=2).eval()
    sae.threshold.fill_(0.8)
    return sae


@pytest.fixture
def activations():
    return torch.randn(50, 5, generator=torch.Generator().manual_seed(1))


def test_histogram_agrees_with_numpy_and_keeps_what_lies_beyond(activations):
    histogram = Histogram(-1, 1, 7)
    for batch in activations.split(9):
        histogram.update(batch)
    expected, _ = np.histogram(activations.clamp(-1, 1).numpy(), histogram.edges.numpy())
    assert histogram.compute().tolist() == expected.tolist()
    assert int(histogram.compute().sum()) == activations.numel()


def test_metrics_are_those_of_inference_in_both_units(sae, activations):
    sae.set_input_statistics(torch.arange(5.0), torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0]))
    metrics = InferenceMetrics(sae)
    for batch in activations.split(8):
        latents = sae.encode(batch)
        metrics.update(sae, batch, latents, sae.decode(latents).detach())
    results = metrics.results()
    errors = (activations - sae.reconstruct(activations)).detach().double()
    centred = (activations - activations.mean(0)).double()
    assert results["raw_explained_variance"] == pytest.approx(float(1 - errors.square().sum() / centred.square().sum()))
    errors, centred = errors / sae.input_scale, centred / sae.input_scale
    assert results["fvu"] == pytest.approx(float(errors.square().sum() / centred.square().sum()), rel=1e-5)
    assert results["explained_variance"] == 1 - results["fvu"]
    assert results["n_tokens"] == 50
    dense = sae.encode(activations).to_dense()
    assert results["l0"] == pytest.approx(float((dense > 0).sum() / 50))
    assert results["dead_fraction"] == pytest.approx(float(((dense > 0).sum(0) == 0).float().mean()))


def test_pre_latents_are_counted_with_those_that_are_kept(sae, activations):
    counts, active = pre_latent_histograms(sae, activations, n_bins=40)
    assert int(counts.counts.sum()) == 50 * 12
    assert int(active.counts.sum()) == sae.encode(activations).n_entries
    pre_latents = sae.pre_latents(activations).detach()
    assert (counts.low, counts.high) == (float(pre_latents.min()), float(pre_latents.max()))
    # Nothing is kept in bins below the threshold, everything above it.
    edges = counts.edges
    assert not bool(active.counts[edges[1:] <= 0.8].any())
    assert torch.equal(active.counts[edges[:-1] > 0.8], counts.counts[edges[:-1] > 0.8])


def test_bins_do_not_depend_on_how_many_rows_follow_the_pilot(sae, activations):
    few, _ = pre_latent_histograms(sae, activations[:20], n_pilot_rows=20)
    many, _ = pre_latent_histograms(sae, activations, n_pilot_rows=20)
    assert torch.equal(few.edges, many.edges)
    assert int(many.counts.sum()) == 50 * 12


def test_equal_pre_latents_have_a_bin():
    sae = TopK(d_in=3, n_latents=4, k=1).eval()
    counts, active = pre_latent_histograms(sae, torch.zeros(5, 3), n_bins=4)
    assert int(counts.counts.max()) == 20
    assert int(active.counts.sum()) == 0
