"""Self-attention approximated with landmarks: its cost grows with the number of tokens, not with its square."""

from math import log, sqrt

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
        qkv = self.to_qkv(self.norm(tokens)).view(n_tokens, 3, self.n_heads, -1)
        queries, keys, values = qkv.permute(1, 2, 0, 3)  # [heads, tokens, d_head]
        queries = queries * (n_hidden // self.n_heads) ** -0.5
        attend = self._attend_few if n_tokens < self.n_landmarks else self._attend_many
        mixed, first = attend(queries, keys, values)
        mixed = (mixed + self.residual(values[None])[0]).transpose(0, 1).flatten(1)
        out = tokens + F.dropout(self.to_out(mixed), self.dropout, self.training)
        return out, None if first is None else first.mean(0)[0]

    def _attend_many(self, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the attended values [heads, tokens, d_head] and, in evaluation, the first token's attention."""
        n_filled = -queries.shape[1] % self.n_landmarks
        # Filled in front, as the linear map without a bias would give zeros for zeros.
        queries, keys, values = (F.pad(one, (0, 0, n_filled, 0)) for one in (queries, keys, values))
        few_queries, few_keys = (
            one.unflatten(1, (self.n_landmarks, -1)).mean(2) for one in (queries, keys)
        )  # [heads, landmarks, d_head]
        to_landmarks = (queries @ few_keys.transpose(1, 2)).softmax(-1)
        between = (few_queries @ few_keys.transpose(1, 2)).softmax(-1)
        inverse = iterative_inverse(between, between.sum(1).max() * between.sum(2).max())
        from_landmarks = (few_queries @ keys.transpose(1, 2)).softmax(-1)
        mixed = to_landmarks @ inverse @ (from_landmarks @ values)
        if self.training:
            return mixed[:, n_filled:], None
        first = to_landmarks[:, n_filled : n_filled + 1] @ inverse @ from_landmarks  # [heads, 1, tokens]
        return mixed[:, n_filled:], first[..., n_filled:]

    def _attend_few(self, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns what `_attend_many` does where each token is a landmark, without computing what is filled up.

        Then the three matrices are one, A, and filled tokens are alike in it: equal rows, equal columns. So A is
        S B S^T with the unit vector along all filled tokens and one vector a token as the columns of S, which are
        orthonormal; and so are its products and its inverse of `iterative_inverse`. B has n_tokens + 1 rows where A has
        n_landmarks, 256 in TransMIL: with 33 tokens its products take a four-hundredth of the time.
        """
        n_filled = self.n_landmarks - queries.shape[1]
        length = sqrt(n_filled)  # of the vector of ones along the filled tokens
        scores = queries @ keys.transpose(1, 2)
        # One column for all filled tokens, whose scores are 0 each.
        shares = F.pad(scores, (1, 0), value=log(n_filled)).softmax(-1)
        weights = shares.new_full((shares.shape[-1],), 1.0)
        weights[0] = length
        of_filled = (weights / self.n_landmarks * length).expand(len(shares), 1, -1)  # they attend to all alike
        matrix = torch.cat([of_filled, shares / weights], dim=1)
        column_sums, row_sums = (weights @ matrix) / weights, (matrix @ weights) / weights
        inverse = iterative_inverse(matrix, column_sums.max() * row_sums.max())
        mixed = matrix[:, 1:] @ inverse @ (matrix[:, :, 1:] @ values)
        if self.training:
            return mixed, None
        return mixed, (matrix[:, 1:2] @ inverse @ matrix)[..., 1:]


def iterative_inverse(matrices: Float[Tensor, "n m m"], bound: Float[Tensor, ""]) -> Float[Tensor, "n m m"]:
    """Returns approximate pseudo-inverses: Newton-Schulz iterations of the third order (Nyströmformer, eq. 11).

    Args:
        matrices: which are not negative.
        bound: the largest column sum times the largest row sum of all matrices together; each matrix transposed over
            it is where the iterations start.
    """
    inverse = matrices.transpose(1, 2) / bound
    identity = torch.eye(matrices.shape[1], dtype=matrices.dtype, device=matrices.device)
    for _ in range(_N_ITERATIONS):
        product = matrices @ inverse
        inverse = 0.25 * inverse @ (13 * identity - product @ (15 * identity - product @ (7 * identity - product)))
    return inverse
