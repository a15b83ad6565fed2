"""Learning-rate schedules as pure functions of the step, so a resumed training needs no state for them."""

import math
from collections.abc import Callable

from headstart.params import Configuration

ONE_CYCLE_RISE = 0.3  # share of the steps in which the learning rate rises, as in torch.optim.lr_scheduler.OneCycleLR …
ONE_CYCLE_START = 1 / 25  # … and its first learning rate, in units of the largest one …
ONE_CYCLE_END = ONE_CYCLE_START / 10_000  # … and its last one


def _cosine_between(start: float, end: float, progress: float) -> float:
    """Return ``start`` at ``progress`` 0 and ``end`` at 1, with half a period of a cosine in between."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))


def constant(step: int, n_steps: int) -> float:
    """Return 1 at every step."""
    return 1.0


def cosine(step: int, n_steps: int) -> float:
    """Decay from 1 to 0, as torch.optim.lr_scheduler.CosineAnnealingLR (Loshchilov and Hutter 2017)."""
    return _cosine_between(1, 0, step / n_steps)


def one_cycle(step: int, n_steps: int) -> float:
    """Rise to 1, then decay, as torch.optim.lr_scheduler.OneCycleLR without its cycle of momentum (Smith 2018)."""
    peak, last = ONE_CYCLE_RISE * n_steps - 1, n_steps - 1
    if step <= peak:
        return _cosine_between(ONE_CYCLE_START, 1, step / peak)
    return _cosine_between(1, ONE_CYCLE_END, (step - peak) / (last - peak))


# Each maps a step, from 0, and the number of steps to the learning rate in units of `lr`.
SCHEDULES: dict[str, Callable[[int, int], float]] = {"constant": constant, "cosine": cosine, "one-cycle": one_cycle}


def learning_rate(configuration: Configuration, step: int, *, n_steps: int, warmup_steps: int = 0) -> float:
    """Return the learning rate of an optimizer step.

    It rises linearly from lr / ``warmup_steps`` to lr in the first ``warmup_steps`` steps. The schedule follows.

    Args:
        step: from 0 to ``n_steps`` - 1.
    """
    if step < warmup_steps:
        return configuration.lr * (step + 1) / warmup_steps
    return configuration.lr * SCHEDULES[configuration.schedule](step - warmup_steps, n_steps - warmup_steps)
