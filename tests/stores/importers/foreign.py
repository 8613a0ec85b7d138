"""Random weights of a toy SAE and what other systems' formulas make of them, written down a second time."""

import torch

D_IN, N_LATENTS, K = 6, 20, 3


def weights(seed=0):
    """W_enc [d_in, n_latents], b_enc, W_dec [n_latents, d_in] with atoms of different lengths, b_dec, and inputs."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    made = {"W_enc": draw(D_IN, N_LATENTS), "b_enc": draw(N_LATENTS) / 2, "W_dec": draw(N_LATENTS, D_IN)}
    return made | {"b_dec": draw(D_IN), "x": 2 * draw(40, D_IN) + 1}


def pre_latents(w, x, subtract=True):
    return (x - w["b_dec"] if subtract else x) @ w["W_enc"] + w["b_enc"]


def keep_top_k(pre, k=K):
    values, indices = pre.relu().topk(k, dim=1)
    return torch.zeros_like(pre).scatter(1, indices, values)


def decoded(w, latents):
    return latents @ w["W_dec"] + w["b_dec"]


def layer_norm(x):
    """Rows as SAELens, Prisma, openai and sae-1n normalise them, and the mean and scale that we decode with.

    They decode with the standard deviation alone; importers say so.
    """
    mean = x.mean(1, keepdim=True)
    scale = (x - mean).std(1, keepdim=True) + 1e-5
    return (x - mean) / scale, mean, scale


def four(w, **more):
    """The state dict that most systems write."""
    return {name: w[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")} | more


def linear(w, b_dec, b_enc="encoder.bias", **more):
    """The state dict of nn.Linear modules."""
    state = {"encoder.weight": w["W_enc"].T.contiguous(), "decoder.weight": w["W_dec"].T.contiguous()}
    return state | {b_enc: w["b_enc"], b_dec: w["b_dec"]} | more
