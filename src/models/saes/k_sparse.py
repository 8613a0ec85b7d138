"""What the families that keep a stated number of latents share: k and its annealing, the threshold, AuxK by default."""

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import torch

from src.models.saes.base import SAE
from src.models.saes.options import at_least, one_of
from src.models.saes.shapes import Rows
from src.models.saes.step import Code, Losses, TrainingProgress
from src.ops.dense_latents import Latents
from src.ops.encoder_product import EncoderProduct
from src.ops.losses import mean_l1
from src.ops.processes import all_counts, mean_over_rows
from src.ops.screening import SCREEN_BELOW
from src.ops.selection import smallest_of_all
from src.ops.shapes import NeuronIds
from src.ops.sparse_latents import SparseLatents

ThresholdStatistic = Literal["batch_min", "mean_of_row_min"]


class KSparse(SAE):
    """An SAE that keeps k latents per row, on average or exactly, and runs through sparse latents only.

    Inference may keep what exceeds `threshold`, an exponential moving average of the smallest kept value that only
    training batches move; `calibrate_threshold` replaces it by an exact one.

    Args:
        d_in: dimension of the activations.
        n_latents: number of neurons; `expansion * d_in` when None.
        expansion: neurons per input dimension.
        k: latents kept per row.
        k_anneal_steps: optimizer steps over which the number kept falls linearly from d_in to k (dictionary_learning);
            None keeps k from the start.
        k_anneal_lags: dictionary_learning's order: the first step keeps k, and each later one what the step before
            it should have.
        l1_coefficient: weight of the mean L1 norm of the latents (an option of sae-1n; 0 everywhere else).
        threshold_decay: share of the old threshold in the moving average.
        threshold_from_zero: start the average at 0, as sae-1n and SAELens do, instead of at the first value.
        threshold_start_step: optimizer step from which the average moves.
        threshold_statistic: of a batch, the smallest kept value ("batch_min") or the mean over rows of the row's
            smallest ("mean_of_row_min", dictionary_learning's TopK).
        **options: of `SAE`; AuxK's coefficient defaults to 1/32 here (Gao et al. 2024).

    Raises:
        ValueError: when k is not within 1 and n_latents, or another option is out of its range.
    """

    threshold_l0: ClassVar[str | None] = "k"

    def __init__(
        self,
        d_in: int,
        n_latents: int | None = None,
        expansion: float = 4,
        k: int = 16,
        *,
        k_anneal_steps: int | None = None,
        k_anneal_lags: bool = False,
        l1_coefficient: float = 0.0,
        threshold_decay: float = 0.99,
        threshold_from_zero: bool = False,
        threshold_start_step: int = 0,
        threshold_statistic: ThresholdStatistic = "batch_min",
        **options: Any,
    ) -> None:
        options.setdefault("aux_coefficient", 1 / 32)
        super().__init__(d_in, n_latents, expansion, **options)
        if not 1 <= k <= self.n_latents:
            raise ValueError(f"Expected sae.k within 1 and n_latents={self.n_latents}, got {k}.")
        if not 0 <= threshold_decay <= 1:
            raise ValueError(f"Expected sae.threshold_decay within 0 and 1, got {threshold_decay}.")
        self.k, self.k_anneal_lags = k, k_anneal_lags
        self.k_anneal_steps = None if k_anneal_steps is None else at_least("k_anneal_steps", k_anneal_steps, 1)
        self.l1_coefficient = at_least("l1_coefficient", l1_coefficient, 0)
        self.threshold_decay, self.threshold_from_zero = threshold_decay, threshold_from_zero
        self.threshold_start_step = at_least("threshold_start_step", threshold_start_step, 0)
        self.threshold_statistic = one_of("threshold_statistic", threshold_statistic, ThresholdStatistic)

    @property
    def screens(self) -> bool:
        """Screening pays where few latents are kept."""
        return self.screening and self.k < SCREEN_BELOW * self.n_latents

    @abstractmethod
    def select(self, product: EncoderProduct, k: int) -> SparseLatents:
        """Chooses what training keeps.

        Args:
            product: the pre-latents.
            k: latents to keep per row.

        Returns:
            The kept entries, positive.
        """

    def code(self, centred: Rows, progress: TrainingProgress, columns: NeuronIds | None) -> Code:
        """Keeps k latents per row in training, and those of inference in evaluation mode; see `SAE.code`."""

        def select(product: EncoderProduct) -> SparseLatents:
            return self.select(product, self.k_at(progress)) if self.training else self.select_inference(product)

        latents, asked = self.encode_selected(centred, columns, select)
        return Code(latents, latents, asked)

    def select_inference(self, product: EncoderProduct) -> SparseLatents:
        """Chooses what inference keeps: what exceeds the threshold."""
        return product.above(self.inference_threshold)

    @torch.no_grad()
    def encode_inputs(self, centred: Rows) -> SparseLatents:
        """Returns the latents of inference for inputs [n_rows, d_in] as the encoder takes them, without a graph."""
        return self.select_inference(self.product(centred))

    def penalties(self, code: Code, inputs: Rows, reconstruction: Rows, progress: TrainingProgress) -> Losses:
        """Returns the L1 term where it has a weight; see `SAE.penalties`."""
        weight = self.l1_coefficient * self.sparsity_scale(progress)
        return {"l1": weight * mean_l1(code.latents)} if weight else {}

    def k_at(self, progress: TrainingProgress) -> int:
        """Returns the number of latents to keep per row at a step."""
        start = min(self.d_in, self.n_latents)
        if self.k_anneal_steps is None or start <= self.k or (self.k_anneal_lags and progress.step == 0):
            return self.k
        share = min((progress.step - self.k_anneal_lags) / self.k_anneal_steps, 1.0)
        return int(start * (1 - share) + self.k * share)

    @torch.no_grad()
    def observe_(self, latents: Latents, progress: TrainingProgress) -> None:
        """Moves the threshold and the counters of silent neurons by one batch of kept latents."""
        super().observe_(latents, progress)
        if progress.step < self.threshold_start_step or not isinstance(latents, SparseLatents):
            return
        if all_counts(latents.n_entries, like=latents.values) == (0,):
            return
        if self.threshold_statistic == "batch_min":
            smallest = smallest_of_all(latents.values)
        else:
            none = latents.values.new_full((latents.n_rows,), torch.inf)
            smallest = none.scatter_reduce(0, latents.row_ids, latents.values, "amin")
            smallest = smallest[smallest.isfinite()]
            smallest = mean_over_rows(smallest.sum(), smallest.numel())
        average = self.threshold_decay * self.threshold + (1 - self.threshold_decay) * smallest
        is_first = (self.threshold <= 0) & (not self.threshold_from_zero)
        self.threshold.copy_(torch.where(is_first, smallest, average))
