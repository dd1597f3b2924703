"""The learning rate as a pure function of the step."""

import math

from glm_dist.train.settings import ScheduleSettings


def learning_rate(settings: ScheduleSettings, step: int, num_steps: int) -> float:
    """Learning rate of step `step` in [0, num_steps): linear warm-up, then the schedule's kind."""
    warmup_steps = math.ceil(settings.warmup_share * num_steps)
    if step < warmup_steps:
        return settings.peak_learning_rate * (step + 1) / warmup_steps
    share = _after_warmup(
        settings, step - warmup_steps, max(1, num_steps - warmup_steps), num_steps
    )
    return settings.peak_learning_rate * share


def _after_warmup(settings: ScheduleSettings, step: int, left: int, num_steps: int) -> float:
    if settings.kind == "constant":
        return 1.0
    if settings.kind == "cosine":
        wave = 0.5 * (1 + math.cos(math.pi * min(1.0, step / left)))
        return settings.final_share + (1 - settings.final_share) * wave
    decay_steps = max(1, min(left, math.ceil(settings.decay_share * num_steps)))
    progress = max(0.0, (step - (left - decay_steps)) / decay_steps)
    return 1 - (1 - settings.final_share) * min(1.0, progress)
