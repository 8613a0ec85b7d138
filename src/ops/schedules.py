"""Learning-rate schedules as functions of the optimizer step."""


def learning_rate_factor(
    step: int,
    warmup_steps: int = 0,
    decay_fraction: float = 0.0,
    total_steps: int | None = None,
    *,
    warmup_from_zero: bool = False,
    restart_every: int | None = None,
) -> float:
    """Returns what the learning rate is multiplied by at a step, counted from 0.

    It rises linearly over `warmup_steps`, stays at 1, and falls linearly over the last `decay_fraction` of
    `total_steps`, to reach 0 just after the last one.

    Args:
        step: optimizer steps made so far.
        warmup_steps: 0 for none.
        decay_fraction: 0 for none.
        total_steps: only the decay needs it.
        warmup_from_zero: whether the first step has rate 0 (dictionary_learning) and not 1 / warmup_steps.
        restart_every: steps after which the warm-up begins again (dictionary_learning's, with resampling).
    """
    since = step % restart_every if restart_every else step
    factor = min((since + (not warmup_from_zero)) / warmup_steps, 1.0) if warmup_steps else 1.0
    if decay_fraction and total_steps:
        factor *= min(max(total_steps - step, 0) / (decay_fraction * total_steps), 1.0)
    return factor
