"""Steering against the published evaluations and against dense arithmetic."""

import csv

import numpy as np
import pytest
import torch
from torch import nn

from src.models.heads import Head
from src.models.saes.relu_l1 import ReLUL1
from src.models.steering import Steering
from src.ops.steering import add, edit_dense, keep, remove, scale, set_to

CLASSES = ("a", "b", "c")


class Map(Head):
    """A head made of a function of the rows."""

    def __init__(self, function, eats="activations", neuron_ids=None):
        super().__init__(CLASSES, eats, neuron_ids)
        self.function = function

    def forward(self, rows):
        """See `Head.forward`."""
        return self.function(rows)


class Pooled(Head):
    """Something non-linear whose logits tell the rows apart."""

    def __init__(self, d, eats="activations", neuron_ids=None):
        super().__init__(CLASSES, eats, neuron_ids)
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(d, 16), nn.Tanh(), nn.Linear(16, 3))

    def forward(self, rows):
        """See `Head.forward`."""
        return self.layers(rows).mean(1) + rows[:, 0, :3]


def make_sae(d_in=8, n_latents=24, **options):
    torch.manual_seed(0)
    sae = ReLUL1(d_in, n_latents, **options).eval()
    with torch.no_grad():
        sae.b_enc.uniform_(-0.5, 0.2)
        sae.b_dec.normal_()
    return sae


def make_rows(n_items=5, n_rows=4, d_in=8, seed=1):
    return 2 * torch.randn(n_items, n_rows, d_in, generator=torch.Generator().manual_seed(seed))


MEANS = torch.linspace(0, 1, 24)
EDITS = {
    "keep few": keep([1, 5, 7], 24),
    "keep few, means": keep([1, 5, 7], 24, MEANS),
    "keep most, means": keep(range(20), 24, MEANS),
    "remove few": remove([0, 2, 3], 24),
    "remove most, means": remove(range(20), 24, MEANS),
    "scale": scale([4, 5, 6], 24, 3.0),
    "set": set_to(range(12), 24, MEANS),
    "add": add(range(18), 24, MEANS),
    "resample few": remove([0, 2, 3], 24, resamples=True),
    "resample most": keep([0, 2, 3], 24, resamples=True),
}


@pytest.mark.parametrize("keeps_error", [True, False])
@pytest.mark.parametrize("input_norm", ["none", "z_score", "standardized"])
def test_logits_are_those_of_dense_edited_latents(keeps_error, input_norm):
    sae = make_sae(input_norm="none" if input_norm == "standardized" else input_norm)
    if input_norm == "standardized":
        sae.set_input_statistics(torch.linspace(-1, 1, 8), torch.linspace(0.5, 2, 8))
    rows, donors, head = make_rows(), make_rows(seed=2), Pooled(8)
    given = Steering(head, sae, list(EDITS.values()), keeps_error, 0.25)(rows, donors)
    flat, statistics = rows.flatten(0, 1), sae.normalize(rows.flatten(0, 1))[1]
    statistics = statistics if sae.normalizes_rows else None
    latents, others = (sae.encode(one.flatten(0, 1)).to_dense() for one in (rows, donors))
    error = flat - sae.reconstruct(flat) if keeps_error else 0
    for (name, edit), logits in zip(EDITS.items(), given, strict=True):
        edited = edit_dense(latents, edit, donors=others)
        back = edited @ sae.W_dec + sae.b_dec
        if statistics is None:
            decoded = back * sae.input_scale + sae.input_mean
        else:
            decoded = back * statistics.scale + statistics.mean
        expected = head((decoded + error + 0.25).view(rows.shape))
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("neuron_ids", [None, (5, 1, 20)])
def test_heads_of_latents_eat_edited_latents(neuron_ids):
    sae, rows, donors = make_sae(), make_rows(), make_rows(seed=2)
    head = Pooled(24 if neuron_ids is None else 3, "latents", neuron_ids)
    columns = list(range(24) if neuron_ids is None else neuron_ids)
    latents, others = (sae.encode(one.flatten(0, 1)).to_dense() for one in (rows, donors))
    given = Steering(head, sae, [None, *EDITS.values()])(rows, donors)
    whole = [latents, *(edit_dense(latents, edit, donors=others) for edit in EDITS.values())]
    for edited, logits in zip(whole, given, strict=True):
        torch.testing.assert_close(logits, head(edited[:, columns].view(5, 4, -1)))


def test_keeping_all_with_the_error_changes_no_bit_and_removing_all_decodes_zero():
    sae, rows, head = make_sae(), make_rows(), Pooled(8)
    everything, nothing, plain = Steering(head, sae, [keep(range(24), 24, MEANS), keep([], 24), None])(rows)
    assert torch.equal(everything, plain)
    assert not torch.allclose(nothing, plain)
    reconstructed, emptied, means = Steering(
        head, sae, [remove([], 24), remove(range(24), 24), remove(range(24), 24, MEANS)], keeps_error=False
    )(rows)
    assert torch.equal(emptied, head(sae.b_dec.expand(rows.shape)))
    torch.testing.assert_close(means, head((MEANS @ sae.W_dec + sae.b_dec).expand(rows.shape)))
    torch.testing.assert_close(reconstructed, head(sae.reconstruct(rows.flatten(0, 1)).view(rows.shape)))


def test_an_edit_of_one_item_touches_no_other_and_edits_do_not_touch_each_other():
    sae, rows, head = make_sae(), make_rows(), Pooled(8)
    edits = [keep([1], 24), None, remove([1], 24), scale([1, 2], 24, 9.0)]
    together = Steering(head, sae, edits)(rows)
    for number, edit in enumerate(edits):
        for item in range(len(rows)):
            (alone,) = Steering(head, sae, [edit])(rows[item : item + 1])
            torch.testing.assert_close(alone[0], together[number][item], rtol=1e-5, atol=1e-6)


def test_equal_edits_go_through_the_head_once():
    calls = []
    head = Map(lambda rows: calls.append(1) or rows.mean(1)[:, :3])
    edits = [keep(range(24), 24), remove([], 24), None, remove([3], 24), remove([3], 24, torch.zeros(24)), None]
    steering = Steering(head, make_sae(), edits)
    logits = steering(make_rows())
    assert len(calls) == steering.n_distinct == 4
    assert logits[0] is logits[1]
    assert logits[2] is logits[5]


def test_donors_are_asked_for():
    for eats in ("activations", "latents"):
        head = Pooled(8 if eats == "activations" else 24, eats)
        with pytest.raises(ValueError, match="give donors"):
            Steering(head, make_sae(), [remove([1], 24, resamples=True)])(make_rows())


def _load_sae(arrays):
    n_latents, d_in = arrays["sae/W_dec"].shape
    sae = ReLUL1(d_in, n_latents).eval()
    state = {"W_enc": arrays["sae/W_enc"].T, "W_dec": arrays["sae/W_dec"]}
    state |= {name: arrays[f"sae/{name}"] for name in ("b_enc", "b_dec")}
    sae.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in state.items()}, strict=False)
    return sae


@pytest.mark.golden
def test_every_embedding_and_prediction_of_patchsaes_evaluation(golden_dir):
    folder = golden_dir / "stats"
    arrays = dict(np.load(folder / "topk_masking.npz").items())
    toy = {name.removeprefix("toy/"): torch.from_numpy(v) for name, v in arrays.items() if name.startswith("toy/")}
    layers = [
        {kind: toy[f"vision_model.encoder.layers.{number}.{kind}"] for kind in ("weight", "bias")} for number in (0, 1)
    ]
    texts, sae, x = torch.from_numpy(arrays["text_features"]), _load_sae(arrays), torch.from_numpy(arrays["x"])
    embeds = []

    def tail(u):
        h = u.tanh()
        h = h + nn.functional.linear(h, **layers[1])
        z = nn.functional.linear(h[:, 0] + h.mean(1), toy["visual_projection.weight"])
        embeds.append(nn.functional.normalize(z, dim=-1))
        return toy["logit_scale"].exp() * embeds[-1] @ texts.T

    sizes, n_latents = arrays["topk_list"].tolist(), sae.n_latents
    recalls = {row: [] for row in arrays["metrics_rows"].tolist()}
    for label in range(len(texts)):
        ids = arrays[f"class{label}/sample_indices"]
        ranking = torch.from_numpy(arrays[f"class{label}/ranking"])
        counts = torch.from_numpy(arrays["cls_sae_cnt"][label])
        assert counts[ranking].tolist() == counts.sort(descending=True).values.tolist()
        edits = {"no_sae": None}
        edits |= {f"on_{k}": keep(ranking[:k], n_latents) for k in sizes}
        edits |= {f"off_{k}": remove(ranking[:k], n_latents) for k in sizes}
        constant = -float(arrays["sae_bias_constant"])
        head = Map(tail)
        steering = Steering(head, sae, list(edits.values()), keeps_error=False, added_constant=constant)
        u = nn.functional.linear(x[ids], **layers[0])
        embeds.clear()
        for name, logits in zip(edits, steering(u), strict=True):
            predicted = logits.argmax(1).numpy()
            assert predicted.tolist() == arrays[f"class{label}/pred/{name}"].tolist(), name
            recalls[name].append(100 * float((predicted == label).mean()))
        assert len(embeds) == steering.n_distinct
        for name, edit in edits.items():
            if edit is not None:
                embeds.clear()
                Steering(head, sae, [edit], keeps_error=False, added_constant=constant)(u)
                np.testing.assert_allclose(embeds[0], arrays[f"class{label}/embeds/{name}"], rtol=1e-4, atol=2e-6)
    table = np.array(list(recalls.values()))
    np.testing.assert_allclose(table, arrays["metrics"], atol=1e-9)
    with open(folder / "topk_masking_metrics.csv", newline="") as file:
        published = list(csv.reader(file))
    np.testing.assert_allclose(table, np.array(published[1:], float), atol=1e-9)


@pytest.mark.golden
def test_every_reconstruction_and_probability_of_mammo_saes_intervention(golden_dir):
    arrays = np.load(golden_dir / "stats" / "mammo_intervention.npz")
    maps = torch.from_numpy(arrays["feature_maps"])
    rows = maps.flatten(2).transpose(1, 2)
    sae = ReLUL1(maps.shape[1], arrays["sae/encoder._bias"].shape[1]).eval()
    state = {"W_enc": arrays["sae/encoder._weight"][0], "b_enc": arrays["sae/encoder._bias"][0]}
    state |= {"W_dec": arrays["sae/decoder._weight"][0].T, "b_dec": arrays["sae/tied_bias"][0]}
    sae.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in state.items()}, strict=False)
    weight, bias = torch.from_numpy(arrays["head_w"]), torch.from_numpy(arrays["head_b"])
    seen = []

    def classify(edited):
        seen.append(edited)
        scores = edited.mean(1) @ weight + bias
        return torch.stack([torch.zeros_like(scores), scores], 1)

    names = sorted({name.rsplit("/", 1)[0] for name in arrays.files if name.endswith("/prob")})
    assert {name.split("/")[0] for name in names} == {"on", "off"}
    assert {"on/k0", "off/k0"} <= set(names)
    for name in names:
        chosen = arrays[f"{name}/latents_sorted"].tolist()
        k = int(name.split("/k")[1])
        n_classes = sum(key.startswith("ranking/class") and key.endswith("index") for key in arrays.files)
        union = {int(one) for c in range(n_classes) for one in arrays[f"ranking/class{c}/index"][:k]}
        assert sorted(union) == chosen
        edit = (keep if name.startswith("on") else remove)(chosen, sae.n_latents)
        seen.clear()
        (logits,) = Steering(Map(classify), sae, [edit], keeps_error=False)(rows)
        expected = arrays[f"{name}/reconstruction"]
        found = seen[0].transpose(1, 2).reshape(maps.shape)
        np.testing.assert_allclose(found[: len(expected)], expected, rtol=1e-4, atol=2e-6)
        np.testing.assert_allclose(logits.softmax(1)[:, 1], arrays[f"{name}/prob"], rtol=1e-4, atol=2e-6)
