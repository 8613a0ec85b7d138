import copy

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment, nnls

from src.models.saes.archetypal import Archetypal
from src.models.saes.batch_topk import BatchTopK
from src.stores.sae import load_sae, save_sae

D_IN, N_LATENTS, N_POINTS, K = 6, 12, 10, 3


def _batch(n_rows=64, seed=0, dtype=torch.float32):
    return torch.randn(n_rows, D_IN, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _sae(seed=0, **options):
    torch.manual_seed(seed)
    return Archetypal(D_IN, N_LATENTS, k=K, **{"n_points": N_POINTS, **options})


def _with_points(seed=0, **options):
    sae = _sae(seed, **options)
    sae.set_points(2 * _batch(N_POINTS, seed=7))
    return sae


def _train(sae, n_steps=40, lr=0.05):
    optimizer = torch.optim.Adam([p for p in sae.parameters() if p.requires_grad], lr=lr)
    for step in range(n_steps):
        sae.step(_batch(seed=step)).loss.backward()
        sae.constrain_gradient_()
        sae.constrain_before_step_()
        optimizer.step()
        optimizer.zero_grad()
        sae.constrain_after_step_()
    return sae


def _distance_to_hull(points, atom):
    """Of an atom to the convex hull: least squares over weights that are not negative, their sum held at 1."""
    heavy = 1e4
    system = torch.cat([points.T, torch.full((1, len(points)), heavy)]).double().numpy()
    weights, _ = nnls(system, torch.cat([atom, torch.tensor([heavy])]).double().numpy())
    return float((points.double().T @ torch.from_numpy(weights) - atom.double()).norm())


def test_atoms_start_as_points_and_middles_of_two():
    sae = _with_points()
    torch.testing.assert_close(sae.atoms[:N_POINTS], F.normalize(_batch(N_POINTS, seed=7), dim=1))
    for row in sae.mixing[N_POINTS:]:
        assert row[row > 0].tolist() == [0.5, 0.5]
    dots = (sae.W_enc * sae.atoms).sum(1)
    torch.testing.assert_close(dots, torch.ones(N_LATENTS))
    # Always of two different points: one point again would make two neurons that never part.
    for seed in range(5):
        counts = _sae(seed, n_points=2).mixing[2:].count_nonzero(dim=1)
        assert (counts == 2).all()
    assert torch.equal(_sae(n_points=1).mixing, torch.ones(N_LATENTS, 1))


@pytest.mark.parametrize("relaxation", [0.0, 0.1, 1.0])
def test_training_keeps_mixtures_on_the_simplex_and_offsets_short(relaxation):
    sae = _with_points(relaxation=relaxation)
    before = sae.mixing.detach().clone()
    _train(sae)
    mixing, points = sae.mixing.detach(), sae.points
    assert mixing.min() >= 0
    torch.testing.assert_close(mixing.sum(1), torch.ones(N_LATENTS))
    lengths = sae.offsets.detach().norm(dim=1)
    assert (lengths <= relaxation * (1 + 1e-6)).all()
    assert (mixing - before).abs().max() > 0.1
    assert bool(lengths.any()) == bool(relaxation)
    torch.testing.assert_close(points, F.normalize(_batch(N_POINTS, seed=7), dim=1))
    assert not sae.b_dec.any()
    distances = [_distance_to_hull(points, atom) for atom in sae.atoms.detach()]
    assert max(distances) <= relaxation + 1e-4
    if relaxation == 1.0:
        assert max(distances) > 0.1


def test_the_projection_by_hand():
    sae = Archetypal(2, 3, k=1, n_points=2, relaxation=0.5)
    sae.set_points(torch.tensor([[3.0, 4.0], [0.0, 7.0]]))  # scaled to [0.6, 0.8] and [0, 1]
    with torch.no_grad():
        sae.mixing.copy_(torch.tensor([[2.0, -1.0], [3.0, 1.0], [0.25, 0.75]]))
        sae.offsets.copy_(torch.tensor([[3.0, 4.0], [0.0, 0.1], [0.0, 0.0]]))
    sae.constrain_after_step_()
    torch.testing.assert_close(sae.mixing.data, torch.tensor([[1.0, 0.0], [0.75, 0.25], [0.25, 0.75]]))
    torch.testing.assert_close(sae.offsets.data, torch.tensor([[0.3, 0.4], [0.0, 0.1], [0.0, 0.0]]))
    expected = torch.tensor([[0.9, 1.2], [0.45, 0.95], [0.15, 0.95]])
    torch.testing.assert_close(sae.atoms.detach(), expected)


def test_step_and_gradients_equal_the_dense_definition():
    sae, x = _with_points(aux_coefficient=0.5, dead_after=1, k_aux=100).double(), _batch(dtype=torch.float64)
    with torch.no_grad():
        sae.mixing.add_(0.1 * torch.rand_like(sae.mixing))
        sae.offsets.normal_(0, 0.1)
        sae.b_enc[:4] = -3.0
    atoms = sae.mixing @ sae.points + sae.offsets
    pre_latents = torch.relu(x @ sae.W_enc.T + sae.b_enc)
    smallest = pre_latents.detach().flatten().topk(K * len(x)).values[-1]
    latents = pre_latents * (pre_latents >= smallest)
    dead = (latents == 0).all(0)
    residual = x - latents @ atoms
    aux = 0.5 * (pre_latents[:, dead] @ atoms[dead] - residual.detach()).square().mean()
    loss = residual.square().mean() + aux
    assert dead.any()
    parameters = [parameter for parameter in sae.parameters() if parameter.requires_grad]
    expected = torch.autograd.grad(loss, parameters)
    step = sae.step(x)
    torch.testing.assert_close(step.losses["aux"], aux)
    torch.testing.assert_close(step.loss, loss)
    for ours, theirs in zip(torch.autograd.grad(step.loss, parameters), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert {name for name, parameter in sae.named_parameters() if parameter.requires_grad} == {
        "W_enc",
        "b_enc",
        "mixing",
        "offsets",
    }


def _matched_cosine(one, other):
    """The mean cosine of the best one-to-one matching of two dictionaries' atoms."""
    cosines = F.normalize(one, dim=1) @ F.normalize(other, dim=1).T
    rows, columns = linear_sum_assignment(-cosines.numpy())
    return float(cosines[rows, columns].mean())


@pytest.mark.slow
def test_seeds_agree_more_than_free_dictionaries_do():
    archetypal, free = [], []
    for seed in (0, 1):
        sae = _with_points(seed, n_points=N_POINTS)
        archetypal.append(_train(sae, 60, 0.01).atoms.detach())
        torch.manual_seed(seed)
        free.append(_train(BatchTopK(D_IN, N_LATENTS, k=K), 60, 0.01).atoms.detach())
    assert _matched_cosine(*archetypal) > _matched_cosine(*free) + 0.1


def test_the_first_batch_gives_points_where_none_were_set():
    sae, x = _sae(), _batch()
    sae.initialize_from_(x.view(8, 8, D_IN))
    cosines = sae.points @ F.normalize(x, dim=1).T
    torch.testing.assert_close(cosines.amax(1), torch.ones(N_POINTS))
    assert len(cosines.argmax(1).unique()) == N_POINTS
    before = copy.deepcopy(sae.state_dict())
    sae.initialize_from_(_batch(seed=1))
    assert torch.equal(sae.points, before["points"])


def test_the_encoder_starts_at_the_scale_that_reconstructs_the_first_batch_best():
    sae, x = _sae(), _batch()
    sae.initialize_from_(x)
    reconstruction = sae.step(x).reconstruction.detach()
    errors = [float((factor * reconstruction - x).square().mean()) for factor in (0.9, 1.0, 1.1)]
    assert errors[1] == min(errors)


def test_points_are_given_raw_and_kept_as_directions():
    sae = _sae()
    mean, scale = torch.linspace(-3, 3, D_IN), torch.linspace(0.5, 2, D_IN)
    sae.set_input_statistics(mean, scale)
    sae.set_points(_batch(N_POINTS) * scale + mean)
    torch.testing.assert_close(sae.points, F.normalize(_batch(N_POINTS), dim=1), rtol=1e-5, atol=1e-5)


def test_export_then_load_is_bit_exact(tmp_path):
    sae = _train(_with_points(), 5).eval()
    save_sae(sae, tmp_path)
    loaded = load_sae(tmp_path)
    assert loaded.init_arguments() == sae.init_arguments()
    assert torch.equal(loaded.atoms, sae.atoms)
    assert torch.equal(loaded.reconstruct(_batch()), sae.reconstruct(_batch()))


def test_a_failed_step_leaves_no_old_atoms_behind():
    sae = _with_points()
    with pytest.raises(ValueError, match="Expected activations"):
        sae.step(torch.zeros(3, D_IN + 1))
    with torch.no_grad():
        sae.offsets.fill_(1.0)
    torch.testing.assert_close(sae.atoms, sae.mixing @ sae.points + 1)


def test_points_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"Expected 10 points of 6 dimensions, got shape \(9, 6\): set sae.n_points"):
        _sae().set_points(_batch(9))
    with pytest.raises(ValueError, match="Expected points that are not all zero, got only zeros"):
        _sae().set_points(torch.zeros(N_POINTS, D_IN))
    with pytest.raises(ValueError, match=r"at least sae.n_points=10 rows to take points from, got 9"):
        _sae().initialize_from_(_batch(9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_points": 0}, "sae.n_points of at least 1, got 0"),
        ({"relaxation": -0.1}, "sae.relaxation of at least 0, got -0.1"),
        ({"decoder_constraint": "after_step"}, "decoder_constraint=none and sae.b_dec_init=zero .*, got after_step"),
        ({"b_dec_init": "mean"}, "got none and mean"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _sae(**options)
