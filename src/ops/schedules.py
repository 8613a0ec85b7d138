"""Learning-rate schedules as functions of the optimizer step."""


def learning_rate_factor(step: int, warmup_steps: int, decay_fraction: float, total_steps: int | None) -> float:
    """Returns what the learning rate is multiplied by at a step, counted from 0.

    It rises linearly over `warmup_steps` (the first step already learns: (step + 1) / warmup_steps), stays at 1, and
    falls linearly over the last `decay_fraction` of `total_steps`, to reach 0 just after the last one.
    """
    factor = min((step + 1) / warmup_steps, 1.0) if warmup_steps else 1.0
    if decay_fraction and total_steps:
        factor *= min(max(total_steps - step, 0) / (decay_fraction * total_steps), 1.0)
    return factor
