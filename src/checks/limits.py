"""The table of limits: what each configuration value may be beyond the kind of its default.

Keys are those of the command line; `key[]` stands for the elements of the list `key`, and `*` for any part of a key.
Numbers that are not listed must not be negative, and texts not empty. Options of a class that are a choice among names
are not listed either: the class annotates them as a Literal, and `src.config` reads it there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from src.folder_names import part_folder
from src.records import PARTS

NONE, SWITCH, WHOLE, NUMBER = "null", "true or false", "a whole number", "a number"
TEXT, LIST, MAPPING = "text", "a list", "a group of values"


@dataclass(frozen=True)
class Limit:
    """What a value may be.

    Attributes:
        words: what `accepts` asks for; empty when nothing.
        accepts: whether a value of a right kind is one that can be worked with.
        kinds: the kinds it may have (null too, where conf/ has it); empty: those that it has in conf/.
        says_all: whether `words` says it all, without the kind.
    """

    words: str = ""
    accepts: Callable[[Any], bool] = lambda _: True
    kinds: frozenset[str] = frozenset()
    says_all: bool = False


def _kind(*kinds: str) -> Limit:
    return Limit(kinds=frozenset(kinds))


def _between(low: float, high: float = math.inf, *kinds: str, low_open: bool = False, high_open: bool = False) -> Limit:
    """Returns the limit of a number within low and high, an open end excluded."""

    def accepts(value: float) -> bool:
        return (low < value if low_open else low <= value) and (value < high if high_open else value <= high)

    words = f"above {low}" if low_open else f"of at least {low}"
    if high < math.inf:
        words += f" and below {high}" if high_open else f" and at most {high}"
    return Limit(words, accepts, frozenset(kinds))


def _one_of(*choices: str) -> Limit:
    words = " or ".join([", ".join(choices[:-1]), choices[-1]])
    return Limit(words, lambda value: value in choices, frozenset({TEXT}), says_all=True)


def _is_fold(value: Any) -> bool:
    return value == "all" if isinstance(value, str) else value >= 0


def _is_part(value: str) -> bool:
    try:
        part_folder(value)
    except ValueError:
        return False
    return True


def _is_size(value: Any) -> bool:
    """Whether it is the edge of a square, or height and width."""
    return len(value) == 2 if isinstance(value, list) else value >= 1


# Of numbers and texts that the table does not list.
USUAL_LIMITS = {
    WHOLE: _between(0),
    NUMBER: _between(0),
    TEXT: Limit("that is not empty", lambda value: value.strip() != ""),
}

_ONE_OR_MORE = _between(1)
_ONE_OR_MORE_WHOLE = _between(1, math.inf, WHOLE)
_POSITIVE = _between(0, math.inf, NUMBER, low_open=True)
_SHARE = _between(0, 1, NUMBER)
_SHARE_BELOW_1 = _between(0, 1, NUMBER, high_open=True)
_INNER_SHARE = _between(0, 1, NUMBER, low_open=True, high_open=True)
_SEED = _between(0, 2**32 - 1, WHOLE)
_ANY_NUMBER = Limit("of any sign", kinds=frozenset({NUMBER}))

LIMITS: dict[str, Limit] = {
    # The run
    "seed": _SEED,
    "fold": Limit("a whole number of at least 0, or all", _is_fold, frozenset({WHOLE, TEXT}), says_all=True),
    "preset": _kind(TEXT),
    "sae_run": _kind(TEXT),
    "ranking_run": _kind(TEXT),
    "mil_run": _kind(TEXT),
    "probe_run": _kind(TEXT),
    "optimize": _kind(TEXT),
    # Data. Labels are compared with the csv, whatever they look like.
    "dataset.dir": _kind(TEXT),
    "dataset.*_dir": _kind(TEXT),
    "dataset.metadata_csv": _kind(TEXT),
    "dataset.tensor*.*": _kind(TEXT),
    "dataset.target": _kind(TEXT, NONE),
    "dataset.labels": _kind(LIST),
    "dataset.labels[]": _kind(TEXT),
    "dataset.uncertain": _kind(TEXT, WHOLE),
    "dataset.class_names[]": _kind(TEXT, WHOLE, NUMBER, SWITCH),
    "dataset.positive_class": _kind(TEXT, WHOLE, NUMBER, SWITCH),
    "dataset.patch_size_level0": _ONE_OR_MORE_WHOLE,
    "dataset.listing": _kind(NONE, MAPPING),
    "dataset.listing.*": _kind(NONE, SWITCH, WHOLE, NUMBER, TEXT, LIST, MAPPING),  # arguments of any function
    "dataset.class_half": _one_of("base", "novel"),
    "dataset.label_names": _kind(TEXT, MAPPING),
    "dataset.label_names.*": _kind(TEXT),
    "dataset.max_pixels": _ONE_OR_MORE_WHOLE,
    "dataset.window": _kind(LIST),
    "dataset.window[]": _ANY_NUMBER,
    "dataset.on_bad_file": _one_of("error", "skip"),
    "dataset.generator": _kind(MAPPING, NONE),
    "dataset.generator.n_cases": _between(2),
    "dataset.generator.n_slides": _between(2),
    "dataset.generator.size": _between(256),
    "dataset.generator.seed": _SEED,
    "dataset.generator.center_skew": _SHARE,
    "dataset.where": _kind(NONE, MAPPING),
    "dataset.where.*": _kind(TEXT),
    "splits.scheme": _one_of("auto", "kfold", "fixed_test", "one_split", "monte_carlo"),
    "splits.n_folds": _between(2),
    "splits.val_share": _INNER_SHARE,
    "splits.test_share": _INNER_SHARE,
    "splits.stratify_by[]": _kind(TEXT),
    "splits.shuffle": _one_of("scikit_learn", "legacy"),
    "splits.seed": _SEED,
    "tile.patch_size": _ONE_OR_MORE,
    "tile.step": _ONE_OR_MORE_WHOLE,
    "tile.mpp": _POSITIVE,
    "tile.min_tissue": _SHARE,
    "tile.saturation_threshold": _SHARE,
    "tile.pen_contrast": _INNER_SHARE,
    "tile.min_sharpness": _POSITIVE,
    "tile.n_workers": _ONE_OR_MORE,
    "backbone.image_size": Limit("of at least 1", _is_size, frozenset({WHOLE, LIST})),
    "backbone.image_size[]": _ONE_OR_MORE_WHOLE,
    "backbone.layer": Limit("of any sign", kinds=frozenset({WHOLE, TEXT, LIST})),
    "backbone.layer[]": Limit("of any sign", kinds=frozenset({WHOLE, TEXT})),
    "backbone.projection": _ONE_OR_MORE_WHOLE,
    "backbone.padded_for": _ONE_OR_MORE_WHOLE,
    "backbone.prompts.*": _ONE_OR_MORE_WHOLE,
    "backbone.crop_pct": _between(0, 1, NUMBER, low_open=True),
    "backbone.pretrained": _kind(SWITCH, TEXT, NONE),
    "tile.seg_level": Limit("of at least -1", lambda value: value >= -1, frozenset({WHOLE})),
    "tile.vis_level": Limit("of at least -1", lambda value: value >= -1, frozenset({WHOLE})),
    "tile.sthresh": _between(0, 255),
    "tile.mthresh": Limit("that is odd and above 1", lambda value: value > 1 and value % 2 == 1),
    "tile.a_t": _between(0, math.inf, NUMBER),
    "tile.a_h": _between(0, math.inf, NUMBER),
    "tile.keep_ids[]": _between(0, math.inf, WHOLE),
    "tile.exclude_ids[]": _between(0, math.inf, WHOLE),
    "backbone.checkpoint": _kind(TEXT),
    "backbone.seed": _SEED,
    "backbone.mean[]": _ANY_NUMBER,
    "backbone.std[]": _POSITIVE,
    "embed.batch_size": _ONE_OR_MORE,
    "embed.part": Limit("a part such as 3/16", _is_part, frozenset({TEXT}), says_all=True),
    "tensors.format": _one_of("pt", "npy"),
    "embed.dtype": _one_of("float32", "float16"),
    # The SAE
    "sae.n_latents": _ONE_OR_MORE_WHOLE,
    "sae.expansion": _POSITIVE,
    "sae.k": _ONE_OR_MORE,
    "sae.k_anneal_steps": _ONE_OR_MORE_WHOLE,
    "sae.k_aux": _ONE_OR_MORE,
    "sae.dead_after": _ONE_OR_MORE,
    "sae.threshold_decay": _SHARE,
    "sae.threshold_init": _ANY_NUMBER,
    "sae.target_l0": _POSITIVE,
    "sae.bandwidth": _POSITIVE,
    "sae.resample_every": _ONE_OR_MORE_WHOLE,
    "sae.resample_every_epochs": _ONE_OR_MORE,
    "sae.resample_silent_for": _ONE_OR_MORE_WHOLE,
    "sae.n_updates": _ONE_OR_MORE,
    "sae.anneal_end": _between(0, math.inf, WHOLE),
    "sae.queue_length": _ONE_OR_MORE,
    "sae.n_points": _ONE_OR_MORE_WHOLE,
    "sae.group_fractions[]": _between(0, 1, NUMBER, low_open=True),
    # Its training
    "train.epochs": _ONE_OR_MORE,
    "train.batch_size": _ONE_OR_MORE,
    "train.batch_unit": _one_of("rows", "images"),
    "train.n_tokens": _ONE_OR_MORE_WHOLE,
    "train.block_size": _ONE_OR_MORE,
    "train.residency": _one_of("auto", "gpu", "ram", "mmap", "stream"),
    "train.lr": _POSITIVE,
    "train.betas": Limit("of two numbers", lambda value: len(value) == 2),
    "train.betas[]": _SHARE_BELOW_1,
    "train.warmup_every": _ONE_OR_MORE_WHOLE,
    "train.decay_fraction": _SHARE,
    "train.max_grad_norm": _POSITIVE,
    "train.compile_backend": _kind(TEXT),
    "train.calibrate_l0": _POSITIVE,
    "train.n_validations": _ONE_OR_MORE,
    "train.total_rows": _ONE_OR_MORE_WHOLE,
    "train.float32_matmul_precision": _one_of("highest", "high", "medium"),
    # Lightning says which it takes on this machine
    "trainer.devices": Limit(
        "a number or a list of devices, or auto", kinds=frozenset({WHOLE, TEXT, LIST}), says_all=True
    ),
    "trainer.devices[]": _kind(WHOLE),
    "trainer.precision": _kind(WHOLE, TEXT),
    "trainer.num_nodes": Limit(
        "1, the machine that the run is on", lambda n: n == 1, frozenset({WHOLE}), says_all=True
    ),
    "trainer.deterministic": _kind(SWITCH, TEXT),
    # What is done with it
    "sweep.grid[]": _kind(TEXT),
    # Where jobs run
    "cluster.kind": _one_of("local", "workers", "slurm"),
    "cluster.steps": _kind(LIST),
    "cluster.steps[]": _kind(TEXT),
    "cluster.n_jobs": _ONE_OR_MORE,
    "cluster.threads": _ONE_OR_MORE_WHOLE,
    "cluster.gpu_ids[]": _kind(WHOLE),
    "cluster.embed_parts": _ONE_OR_MORE,
    "cluster.partition": _kind(TEXT),
    "cluster.account": _kind(TEXT),
    "cluster.qos": _kind(TEXT),
    "cluster.constraint": _kind(TEXT),
    "cluster.container": _kind(TEXT),
    "cluster.python": _kind(TEXT),
    "cluster.cpus": _ONE_OR_MORE,
    "cluster.mem_gb": _between(0, math.inf, NUMBER, NONE, low_open=True),
    "cluster.minutes": _ONE_OR_MORE,
    "cluster.setup[]": _kind(TEXT),
    "cluster.sbatch.*": _kind(SWITCH, WHOLE, NUMBER, TEXT),
    "status.stalled_minutes": _between(0, math.inf, NUMBER, low_open=True),
    "convert.path": _kind(TEXT),
    "convert.activations": _kind(TEXT),
    "convert.format": _one_of(
        "auto", "dictionary_learning", "saelens", "sparsify", "openai", "sae1n", "patchsae", "dncbm", "saev", "prisma"
    ),
    "evaluation.n_rows": _ONE_OR_MORE_WHOLE,
    "evaluation.batch_size": _ONE_OR_MORE,
    "evaluation.almost_dead_below": _INNER_SHARE,
    "evaluation.dense_above": _between(0, 1, NUMBER, low_open=True),
    "evaluation.redundant_above": _SHARE,
    "evaluation.n_pre_latent_rows": _ONE_OR_MORE,
    "encode.dense_formats[]": _one_of("h5", "pt"),
    "visualize.neurons[]": _kind(WHOLE),
    "visualize.choose": _one_of("ranking", "class"),
    "visualize.class_rule": _one_of("contrast", "count", "mean_abs"),
    "visualize.n_neurons": _ONE_OR_MORE,
    "visualize.source": _one_of("auto", "stored", "computed"),
    "visualize.split": _one_of("train", "val", "test", "train+val", "val+test", "train+val+test"),
    "visualize.class_filter[]": _kind(TEXT),
    "visualize.n_images": _ONE_OR_MORE_WHOLE,
    "visualize.n_sheet_images": _ONE_OR_MORE,
    "visualize.thresholds": Limit("that is not empty", lambda value: len(value) > 0),
    "visualize.scale": _one_of("neuron", "image", "absolute"),
    "visualize.interpolation": _one_of("bilinear", "nearest"),
    "visualize.longest_side": _ONE_OR_MORE,
    "visualize.target_box": _kind(TEXT),
    "visualize.n_random": _ONE_OR_MORE,
    "selection.pool": _one_of("max", "mean", "top_mean", "active_fraction"),
    "selection.top_share": _between(0, 1, NUMBER, low_open=True),
    "selection.method": _one_of("welch", "mann_whitney", "auroc", "effect_size", "logistic", "mil_weights"),
    "selection.unit": _one_of("case", "slide"),
    "selection.p_value": _one_of("guarded", "welch"),
    "selection.alternative": _one_of("greater", "two_sided"),
    "selection.correction": _one_of("bh", "max_t"),
    "selection.n_permutations": _ONE_OR_MORE,
    "selection.adjust_for[]": _kind(TEXT),
    "selection.n_top": _ONE_OR_MORE,
    "selection.export[]": Limit("sae1n", lambda value: value == "sae1n", frozenset({TEXT}), says_all=True),
    "comparison.runs[]": _kind(TEXT),
    "comparison.n_top": _ONE_OR_MORE,
    "mil.pools": _kind(MAPPING),
    "mil.pools.*.n_hidden": _ONE_OR_MORE,
    "mil.pools.*.n_attention": _ONE_OR_MORE,
    "mil.pools.*.dropout": _SHARE_BELOW_1,
    "mil.pools.*.attention_dropout": _SHARE_BELOW_1,
    "mil.pools.*.n_heads": _ONE_OR_MORE,
    "mil.pools.*.n_sampled": _ONE_OR_MORE,
    "mil.pools.*.n_query": _ONE_OR_MORE,
    "mil.pools.*.bag_weight": _SHARE,
    "mil.methods": Limit("that is not empty", lambda value: len(value) > 0),
    "mil.n_top_neurons": _ONE_OR_MORE,
    "mil.batch_size": _ONE_OR_MORE,
    "mil.lr": _POSITIVE,
    "mil.max_epochs": _ONE_OR_MORE,
    "mil.patience": _ONE_OR_MORE,
    "mil.neurons[]": _kind(WHOLE),
    "mil.betas": Limit("of two numbers", lambda value: len(value) == 2),
    "mil.betas[]": _SHARE_BELOW_1,
    "mil.cosine_to": _kind(NUMBER),
    "mil.class_weights": Limit("balanced", lambda value: value == "balanced", frozenset({TEXT}), says_all=True),
    "mil.monitor": _one_of("loss", "auroc"),
    # A search. Of the patterns that fit a key the first holds.
    "search.space.*.choices": _kind(LIST),
    "search.space.*.choices[]": Limit("of any value", kinds=frozenset({TEXT, WHOLE, NUMBER, SWITCH, NONE})),
    "search.space.*.low": _ANY_NUMBER,
    "search.space.*.high": _ANY_NUMBER,
    "search.space.*.step": _kind(NUMBER, NONE),
    "search.space.*.log": _kind(SWITCH),
    "search.space.*": _kind(MAPPING, LIST, TEXT, WHOLE, NUMBER, SWITCH, NONE),  # src.checks.search looks at it
    "search.maximize[]": _kind(TEXT),
    "search.minimize[]": _kind(TEXT),
    "search.n_trials": _ONE_OR_MORE_WHOLE,
    "search.sampler": _one_of("tpe", "random", "nsga2"),
    "search.seed": _SEED,
    "logger.wandb.entity": _kind(TEXT, NONE),
    "logger.wandb.wait": _kind(NUMBER, NONE),
    "probe.inputs": Limit("that is not empty", lambda value: len(value) > 0),
    "probe.inputs[]": _one_of("activations", "latents", "neurons"),
    "probe.neurons": _kind(LIST),
    "probe.neurons[]": _kind(WHOLE),
    "probe.n_neurons": _ONE_OR_MORE,
    "probe.latents": _one_of("auto", "stored", "computed"),
    "probe.pool": _one_of("mean", "max", "cls", "none"),
    "probe.columns[]": _kind(TEXT),
    "probe.class_weights": Limit("balanced", lambda value: value == "balanced", frozenset({TEXT}), says_all=True),
    "probe.scale": _one_of("global", "feature", "none"),
    "probe.solver": _one_of("auto", "lbfgs", "adam"),
    "probe.l2": Limit("that is not empty", lambda value: len(value) > 0),
    "probe.batch_size": _ONE_OR_MORE,
    "probe.lr": _POSITIVE,
    "probe.max_epochs": _ONE_OR_MORE,
    "probe.threshold_metric": _one_of("balanced_accuracy", "f1"),
    "steer.head": _one_of("auto", "probe", "mil", "tail", "tail_probe", "zero_shot"),
    "steer.tail_classes": _kind(LIST, NONE),
    "steer.tail_classes[]": _kind(TEXT),
    "steer.zero_shot.templates": _kind(LIST, TEXT),
    "steer.zero_shot.texts": _kind(MAPPING),
    "steer.classes": _one_of("all", "base", "novel"),
    "steer.rule": _one_of("contrast", "count", "mean_abs"),
    "steer.sizes": Limit("that is not empty", lambda value: len(value) > 0),
    "steer.k_chosen": _ONE_OR_MORE_WHOLE,
    "steer.replace": _one_of("mean", "zero", "resample"),
    "steer.error_term": _one_of("dropped", "kept"),
    "steer.added_constant": _ANY_NUMBER,
    "steer.control_sizes": _one_of("all", "chosen"),
    "steer.batch_size": _ONE_OR_MORE,
    "localization.label_rule": Limit(
        "center, any, half or a share above 0",
        lambda value: value in ("center", "any", "half") if isinstance(value, str) else 0 < value <= 1,
        frozenset({TEXT, NUMBER}),
        says_all=True,
    ),
    "localization.positive_groups": _kind(LIST, NONE),
    "localization.positive_groups[]": _kind(TEXT),
    "localization.provider_column": _kind(TEXT),
    "localization.mpp": _POSITIVE,
    "localization.specificity": _INNER_SHARE,
    "localization.exclude_slides[]": _kind(TEXT),
    "localization.n_bootstrap": _ONE_OR_MORE,
    "localization.thumbnail_size": _ONE_OR_MORE,
    "localization.n_exemplar_neurons": _ONE_OR_MORE,
    "localization.max_exemplars_per_slide": _ONE_OR_MORE,
    "latent_summary.source": _one_of("auto", "stored", "computed"),
    "latent_summary.recipe": _one_of("default", "patchsae", "cytosae"),
    "latent_summary.n_top": _ONE_OR_MORE,
    "latent_summary.ignore_label": _kind(TEXT, WHOLE, NUMBER, SWITCH, NONE),
    "latent_summary.rule": _one_of("contrast", "count", "mean_abs"),
    "latent_summary.compare_with": Limit("train, val or test", lambda value: value in PARTS, frozenset({TEXT, NONE})),
    "latent_summary.top_k[]": _ONE_OR_MORE_WHOLE,
    "latent_summary.cases": _one_of("auto", "always", "never"),
    "latent_summary.n_case_folds": _between(2),
    "latent_summary.export[]": _one_of("feature_data", "concepts"),
    "latent_summary.checkpoint": _kind(TEXT, NONE),
    "summary.n_bootstrap": _ONE_OR_MORE,
    "summary.confidence": _INNER_SHARE,
    "summary.metrics": Limit("that is not empty", lambda value: len(value) > 0),
    "summary.metrics[]": _one_of("accuracy", "auroc", "average_precision", "balanced_accuracy"),
    "summary.n_top_neurons": _ONE_OR_MORE,
    "summary.published": _kind(TEXT, NONE),
    "report.max_image_width": _ONE_OR_MORE,
}
