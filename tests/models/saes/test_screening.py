"""Training and inference with screening choose what they choose without."""

import copy

import pytest
import torch

from src.models.saes.batch_topk import BatchTopK
from src.models.saes.gated import Gated
from src.models.saes.jumprelu import JumpReLU
from src.models.saes.matryoshka_batch_topk import MatryoshkaBatchTopK
from src.models.saes.relu_l1 import ReLUL1
from src.models.saes.step import TrainingProgress
from src.models.saes.topk import TopK
from src.modules.sae import SAEModule
from src.ops import encoder_product, screening_bound
from src.ops.sparse_latents import SparseLatents

D_IN, N_LATENTS, N_ROWS = 64, 1024, 400
FAMILIES = {
    "batch_topk": lambda: BatchTopK(D_IN, N_LATENTS, k=8, dead_after=3),
    "matryoshka": lambda: MatryoshkaBatchTopK(D_IN, N_LATENTS, k=8),
    "topk": lambda: TopK(D_IN, N_LATENTS, k=8),
    "jumprelu": lambda: JumpReLU(D_IN, N_LATENTS, threshold_init=0.6, bandwidth=0.05),
    "gated": lambda: Gated(D_IN, N_LATENTS),
    "relu": lambda: ReLUL1(D_IN, N_LATENTS, l1_coefficient=0.05),
}


@pytest.fixture(params=FAMILIES)
def sae(request):
    torch.manual_seed(0)
    sae = FAMILIES[request.param]()
    with torch.no_grad():
        if hasattr(sae, "density"):  # as late in a training, when few latents are left
            sae.density.fill_(0.01)
            sae.b_enc.fill_(-0.5)
    return sae


def batches(n):
    """Sums of a few of the directions, so that there is something to choose."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.nn.functional.normalize(torch.randn(N_LATENTS, D_IN, generator=generator), dim=1)
    for _ in range(n):
        chosen = torch.randint(N_LATENTS, (N_ROWS, 4), generator=generator)
        yield directions[chosen].sum(1) + 0.05 * torch.randn(N_ROWS, D_IN, generator=generator)


def assert_same(one, other):
    assert torch.equal(one.row_offsets, other.row_offsets)
    assert torch.equal(one.neuron_ids, other.neuron_ids)
    torch.testing.assert_close(one.values, other.values, rtol=1e-5, atol=1e-6)


def n_different(one, other):
    """Returns how many entries are in one of the two alone."""
    return int(((one.to_dense() != 0) != (other.to_dense() != 0)).sum())


def test_each_training_step_chooses_the_same_latents(sae, monkeypatch):
    """Up to two in the 16 million pairs of 40 steps may lie so close to the edge that rounding decides."""
    calls, n_at_edge = [], 0
    for name in ("screened_above", "screened_largest_per_row"):
        screened = getattr(encoder_product, name)
        monkeypatch.setattr(encoder_product, name, lambda *a, _f=screened: calls.append(1) or _f(*a))
    optimizer = torch.optim.Adam([p for p in sae.parameters() if p.requires_grad], lr=1e-3)
    for number, batch in enumerate(batches(40)):
        plain = copy.deepcopy(sae)
        sae.screening = True
        one, other = sae.step(batch, TrainingProgress(number)), plain.step(batch, TrainingProgress(number))
        one.loss.backward()
        other.loss.backward()
        if n := n_different(one.latents, other.latents):
            n_at_edge += n
        else:
            assert_same(one.latents, other.latents)
            for mine, its in zip(sae.parameters(), plain.parameters(), strict=True):
                if its.grad is not None:
                    torch.testing.assert_close(mine.grad, its.grad, rtol=1e-4, atol=1e-7)
        optimizer.step()
        optimizer.zero_grad()
        sae.constrain_after_step_()
        sae.screening = False
    assert len(calls) >= 40
    assert n_at_edge <= 2


def test_inference_chooses_the_same_latents(sae):
    sae.eval()
    if isinstance(sae, BatchTopK):
        sae.threshold.fill_(0.5)
    (rows,) = batches(1)
    plain = sae.encode(rows)
    sae.screening = True
    assert plain.n_entries
    assert_same(sae.encode(rows), plain)


def test_a_checkpoint_keeps_whether_training_screens():
    screening, other = (SAEModule(FAMILIES["topk"]()) for _ in range(2))
    screening.sae.screening = True
    other.load_state_dict(screening.state_dict())
    assert other.sae.screening
    screening.sae.screening = False
    other.load_state_dict(screening.state_dict())
    assert not other.sae.screening


@pytest.mark.parametrize("n_before", [1, 3])
def test_training_that_goes_on_from_a_checkpoint_rounds_as_it_would_have(n_before, sae):
    def train(module, some, first):
        optimizer = module.configure_optimizers()
        for number, batch in enumerate(some):
            module.sae.step(batch, TrainingProgress(first + number)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            module.sae.constrain_after_step_()
            # An optimizer of its own a step: Adam's state is Lightning's to keep.
            optimizer = module.configure_optimizers()

    all_batches = list(batches(6))
    sae.screening = True
    module = SAEModule(sae)
    train(module, all_batches[:n_before], 0)
    resumed = SAEModule(copy.deepcopy(sae))
    resumed.sae.candidate_threshold = None
    resumed.load_state_dict(module.state_dict())
    for one in (module, resumed):
        train(one, all_batches[n_before:], n_before)
    for name, value in module.sae.state_dict().items():
        assert torch.equal(value, resumed.sae.state_dict()[name]), name


def test_half_precision_is_left_to_autocast():
    sae = FAMILIES["topk"]().eval()
    (rows,) = batches(1)
    with torch.autocast("cpu", torch.bfloat16):
        plain = sae.encode(rows)
        sae.screening = True
        assert torch.equal(sae.encode(rows).values, plain.values)


def test_what_is_made_of_unchanged_weights_is_made_once(sae, monkeypatch):
    made = []
    true = screening_bound.screening_weights
    monkeypatch.setattr(screening_bound, "screening_weights", lambda *args: made.append(args) or true(*args))
    sae.eval()
    sae.screening = True
    rows = list(batches(3))
    expected = [sae.encode(one) for one in rows]
    with sae.unchanged():
        for one, before in zip(rows, expected, strict=True):
            assert_same(sae.encode(one), before)
        assert len(made) == 1
    with torch.no_grad():
        sae.W_enc.data.mul_(-1)
    after = sae.encode(rows[0])
    sae.screening = False
    assert_same(after, sae.encode(rows[0]))
    assert not torch.equal(after.neuron_ids, expected[0].neuron_ids)


def test_another_threshold_is_seen_while_weights_are_unchanged():
    torch.manual_seed(0)
    sae = BatchTopK(D_IN, N_LATENTS, k=8).eval()
    sae.screening = True
    (rows,) = batches(1)
    with sae.unchanged():
        for threshold in (0.5, 0.3, 0.5):
            sae.threshold.fill_(threshold)
            pre_latents = sae.pre_latents(rows).detach()
            assert_same(sae.encode(rows), SparseLatents.from_dense(pre_latents * (pre_latents > threshold)))
