import numpy as np
import pytest
import torch

from src.analysis.item_latents import gather_items
from src.analysis.label_entropy import label_mass, published_entropy
from src.analysis.latent_sums import CaseSums, ClassSums, NeuronSums
from src.analysis.published_features import describe_features, rank_concepts
from src.analysis.top_items import TopItemLists
from tests.analysis.planted import cut

FEATURE_DATA = ["feature_data_2d_patchsae", "feature_data_3d_patchsae"]


def golden(golden_dir, name):
    arrays = np.load(golden_dir / "stats" / f"{name}.npz")
    latents = torch.from_numpy(arrays["latents"])
    return arrays, list(latents if latents.ndim == 3 else latents[:, None]), arrays["labels"]


def add(items, threshold, *sums):
    for found in gather_items(cut(items, 17), threshold):
        for one in sums:
            one.update(found)


@pytest.mark.golden
@pytest.mark.parametrize("name", FEATURE_DATA)
def test_golden_statistics_of_neurons(golden_dir, name):
    arrays, items, labels = golden(golden_dir, name)
    n_latents = items[0].shape[1]
    neurons, top = NeuronSums(n_latents), TopItemLists(n_latents, int(arrays["num_max"]), "mean")
    add(items, 0.2, neurons, top)
    data = describe_features(neurons, top.compute(), labels)
    np.testing.assert_allclose(data.values, arrays["out/max_activating_image_values"], rtol=1e-6, atol=1e-7)
    filled = data.values > 0
    np.testing.assert_array_equal(data.indices[filled], arrays["out/max_activating_image_indices"][filled])
    np.testing.assert_array_equal(data.label_indices[filled], arrays["out/max_activating_image_label_indices"][filled])
    np.testing.assert_allclose(data.mean_acts, arrays["out/sae_mean_acts"], rtol=1e-5)
    np.testing.assert_allclose(data.sparsity, arrays["out/sae_sparsity"], rtol=1e-6)
    np.testing.assert_allclose(data.entropy, arrays["out/top_entropy"], atol=1e-6)
    silent = neurons.active_rows == 0
    assert silent.any()
    assert np.isnan(data.mean_acts[silent]).all()
    assert np.isnan(data.entropy[silent]).all()


@pytest.mark.golden
@pytest.mark.parametrize("name", FEATURE_DATA)
def test_golden_entropy_without_a_label(golden_dir, name):
    arrays, _, _ = golden(golden_dir, name)
    lists = arrays["out/max_activating_image_values"], arrays["out/max_activating_image_label_indices"]
    found = published_entropy(*lists, ignore_label=0)
    np.testing.assert_allclose(found, arrays["out/top_entropy_ignore0"], atol=1e-6)
    assert (found == -1).any()


@pytest.mark.golden
@pytest.mark.parametrize("name", FEATURE_DATA)
def test_golden_counts_of_classes(golden_dir, name):
    arrays, items, labels = golden(golden_dir, name)
    classes = tuple(map(str, range(labels.max() + 1)))
    sums = ClassSums(labels, len(classes), items[0].shape[1])
    add(items, 0.2, sums)
    counts = sums.statistics(classes, np.arange(len(classes))[:, None], counts_rows=True).counts
    np.testing.assert_array_equal(counts, arrays["out/cls_sae_cnt_all"])
    half = len(classes) // 2
    np.testing.assert_array_equal(counts[:half], arrays["out/cls_sae_cnt_base"])
    np.testing.assert_array_equal(counts[half:], arrays["out/cls_sae_cnt_novel"])


@pytest.mark.golden
def test_golden_counts_of_patients(golden_dir):
    """The 2-D file of CytoSAE is the output of a defect (its README) and is not followed."""
    arrays, items, labels = golden(golden_dir, "feature_data_3d_cytosae")
    n_latents = items[0].shape[1]
    sums = CaseSums(labels, int(labels.max()) + 1, n_latents)
    add(items, 0.2, sums)
    rows = sums.rows_above().toarray()
    np.testing.assert_array_equal(rows, arrays["out/cls_sae_cnt_classwise"])
    np.testing.assert_allclose(rows / n_latents, arrays["out/cls_sae_cnt_patientwise"], rtol=1e-12)


@pytest.mark.golden
def test_golden_concepts_and_their_rankings(golden_dir):
    arrays = np.load(golden_dir / "stats" / "mammo_intervention.npz")
    n_images, _, height, width = arrays["feature_maps"].shape
    sae = {
        name.removeprefix("sae/"): torch.from_numpy(arrays[name]).double() for name in arrays.files if "sae/" in name
    }
    rows = torch.from_numpy(arrays["feature_maps"]).double().permute(0, 2, 3, 1).reshape(-1, len(sae["tied_bias"][0]))
    latents = ((rows - sae["tied_bias"]) @ sae["encoder._weight"][0].T + sae["encoder._bias"]).relu().float()
    labels = arrays["labels"]
    n_classes, n_latents = int(labels.max()) + 1, latents.shape[1]
    neurons, classes = NeuronSums(n_latents), ClassSums(labels, n_classes, n_latents)
    items = CaseSums(np.arange(n_images), n_images, n_latents)
    add(list(latents.split(height * width)), 0.2, neurons, classes, items)
    np.testing.assert_allclose(items.means().toarray(), arrays["global_concepts"], rtol=1e-5, atol=1e-6)
    names = tuple(map(str, range(n_classes)))
    found = rank_concepts(neurons, classes.statistics(names, np.arange(n_classes)[:, None]))
    assert set(found) == {"all", *range(n_classes)}
    for label, (neuron_ids, importance) in found.items():
        key = f"ranking/{'all' if label == 'all' else f'class{label}'}"
        np.testing.assert_allclose(importance, arrays[f"{key}/importance"], rtol=1e-5, atol=1e-7)
        fires = importance > 0
        np.testing.assert_array_equal(neuron_ids[fires], arrays[f"{key}/index"][fires])


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["acevedo", "matek"])
def test_entropy_of_published_tables(data_dir, name):
    """A real SAE of 49,152 neurons on two sets of blood cells."""
    tables = np.load(data_dir / "embeddings" / f"cytosae_{name}.npz")
    values, labels = tables["max_activating_image_values"], tables["max_activating_image_label_indices"]
    found = published_entropy(values, labels)
    np.testing.assert_allclose(found, tables["top_entropy"], atol=1e-6)  # NaN where NaN is
    silent = tables["sae_sparsity"] == 0
    assert silent.any()
    np.testing.assert_array_equal(np.isnan(found), silent)
    np.testing.assert_array_equal(np.isnan(tables["sae_mean_acts"]), silent)


def test_mass_by_hand():
    values = np.array([[3.0, 1, 0], [1, 1, 1], [0, 0, 0]], np.float32)
    labels = np.array([[0, 1, -1], [2, 2, 2], [-1, -1, -1]])
    found = label_mass(values, labels, 3)
    expected = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    np.testing.assert_allclose(found.entropy, [expected, 0, np.nan])
    np.testing.assert_allclose(found.purity, [0.75, 1, np.nan])
    assert found.top_label.tolist() == [0, 2, -1]
    without = label_mass(values, labels, 3, ignore_label=0)
    assert without.top_label.tolist() == [1, 2, -1]
    # Items without a label are left out, and lists of such items alone have none.
    assert np.isnan(label_mass(values, np.full((3, 3), -1), 3).entropy).all()
