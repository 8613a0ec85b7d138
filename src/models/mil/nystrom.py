"""Self-attention approximated with landmarks: its cost grows with the number of tokens, not with its square."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_N_ITERATIONS = 6
_KERNEL = 33


class NystromLayer(nn.Module):
    """`tokens + attention(norm(tokens))`, the attention matrix approximated by Nyström's method.

    Xiong et al., "Nyströmformer: a Nyström-based algorithm for approximating self-attention", AAAI 2021, in the form
    that TransMIL uses: `n_hidden / 2` landmarks, each the mean of neighbouring tokens; a pseudo-inverse of six
    iterations; a depthwise convolution of the values over 33 tokens beside the attention. Sequences are filled up with
    zeros in front to a multiple of the landmarks.

    Args:
        n_hidden: width of tokens.
        n_heads: attention heads.
        dropout: share of units dropped behind the attention, in training.
    """

    def __init__(self, n_hidden: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.n_landmarks, self.dropout = n_heads, n_hidden // 2, dropout
        self.norm = nn.LayerNorm(n_hidden)
        self.to_qkv = nn.Linear(n_hidden, 3 * n_hidden, bias=False)
        self.to_out = nn.Linear(n_hidden, n_hidden)
        self.residual = nn.Conv2d(n_heads, n_heads, (_KERNEL, 1), padding=(_KERNEL // 2, 0), groups=n_heads, bias=False)

    def forward(
        self, tokens: Float[Tensor, "n_tokens n_hidden"]
    ) -> tuple[Float[Tensor, "n_tokens n_hidden"], Float[Tensor, " n_tokens"] | None]:
        """Returns the new tokens and, in evaluation, how the first token attends to each: the mean over heads."""
        n_tokens, n_hidden = tokens.shape
        n_filled = -n_tokens % self.n_landmarks
        qkv = F.pad(self.to_qkv(self.norm(tokens)), (0, 0, n_filled, 0))  # without a bias: zeros give zeros
        queries, keys, values = qkv.view(len(qkv), 3, self.n_heads, -1).permute(1, 2, 0, 3)  # [heads, tokens, d_head]
        queries = queries * (n_hidden // self.n_heads) ** -0.5
        few_queries, few_keys = (
            one.unflatten(1, (self.n_landmarks, -1)).mean(2) for one in (queries, keys)
        )  # [heads, landmarks, d_head]
        to_landmarks = (queries @ few_keys.transpose(1, 2)).softmax(-1)
        inverse = iterative_inverse((few_queries @ few_keys.transpose(1, 2)).softmax(-1))
        from_landmarks = (few_queries @ keys.transpose(1, 2)).softmax(-1)
        mixed = to_landmarks @ inverse @ (from_landmarks @ values) + self.residual(values[None])[0]
        mixed = mixed.transpose(0, 1).flatten(1)[n_filled:]
        out = tokens + F.dropout(self.to_out(mixed), self.dropout, self.training)
        if self.training:
            return out, None
        first = to_landmarks[:, n_filled : n_filled + 1] @ inverse @ from_landmarks  # [heads, 1, tokens]
        return out, first.mean(0)[0, n_filled:]


def iterative_inverse(matrices: Float[Tensor, "n m m"]) -> Float[Tensor, "n m m"]:
    """Returns approximate pseudo-inverses: Newton-Schulz iterations of the third order (Nyströmformer, eq. 11).

    The start is each matrix transposed over the largest column sum times the largest row sum of all matrices together.
    """
    sizes = matrices.abs()
    inverse = matrices.transpose(1, 2) / (sizes.sum(1).max() * sizes.sum(2).max())
    identity = torch.eye(matrices.shape[1], dtype=matrices.dtype, device=matrices.device)
    for _ in range(_N_ITERATIONS):
        product = matrices @ inverse
        inverse = 0.25 * inverse @ (13 * identity - product @ (15 * identity - product @ (7 * identity - product)))
    return inverse
