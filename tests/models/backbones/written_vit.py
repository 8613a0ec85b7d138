"""A ViT written from its paper (Dosovitskiy et al. 2021) with plain operations on named weights, to compare with."""

import torch
import torch.nn.functional as F


def norm(x, w, name, eps=1e-6):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)


def attend(q, k, v, n_heads):
    """Softmax attention, one head at a time: [n_queries, d] over [n_keys, d]."""
    d = q.shape[-1] // n_heads
    heads = []
    for i in range(n_heads):
        part = slice(i * d, (i + 1) * d)
        heads.append(((q[..., part] @ k[..., part].mT) * d**-0.5).softmax(-1) @ v[..., part])
    return torch.cat(heads, dim=-1)


def patch_tokens(images, w, name="patch_embed.proj"):
    """Rows of patches, each flattened and multiplied by the kernel."""
    kernel = w[f"{name}.weight"]
    edge = kernel.shape[-1]
    batch, _, height, width = images.shape
    cut = images.reshape(batch, 3, height // edge, edge, width // edge, edge).permute(0, 2, 4, 1, 3, 5).flatten(3)
    return (cut @ kernel.flatten(1).T + w.get(f"{name}.bias", 0)).flatten(1, 2)


def vit_tokens(images, w, depth, n_heads, activate=F.gelu, positions=None, scales=("ls1.gamma", "ls2.gamma"), eps=1e-6):
    """All tokens after the last norm; keys as timm's."""
    x = patch_tokens(images, w)
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], dim=1) + (
        w["pos_embed"] if positions is None else positions
    )
    for i in range(depth):
        at = f"blocks.{i}."
        y = norm(x, w, f"{at}norm1", eps)
        if f"{at}attn.q_bias" in w:  # BEiT: keys have no bias
            bias = torch.cat([w[f"{at}attn.q_bias"], torch.zeros_like(w[f"{at}attn.q_bias"]), w[f"{at}attn.v_bias"]])
            q, k, v = (y @ w[f"{at}attn.qkv.weight"].T + bias).chunk(3, -1)
        else:
            q, k, v = linear(y, w, f"{at}attn.qkv").chunk(3, -1)
        x = x + linear(attend(q, k, v, n_heads), w, f"{at}attn.proj") * w.get(at + scales[0], 1)
        y = linear(activate(linear(norm(x, w, f"{at}norm2", eps), w, f"{at}mlp.fc1")), w, f"{at}mlp.fc2")
        x = x + y * w.get(at + scales[1], 1)
    return norm(x, w, "norm", eps)
