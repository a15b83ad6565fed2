"""Early stopping: end a training when its loss on validation images has not improved for some epochs."""

from collections.abc import Sequence


def best_epoch(losses: Sequence[float]) -> int:
    """The number, from 1, of the epoch with the lowest of ``losses``, the first of equal ones."""
    return min(range(len(losses)), key=losses.__getitem__) + 1


def should_stop(losses: Sequence[float], patience: int | None) -> bool:
    """Return whether the last ``patience`` epochs brought no lower loss (Prechelt 1998, "Early stopping – but when?").

    A training that stops early has not necessarily converged: the loss on few validation images is noisy.

    Args:
        losses: on validation images, after each epoch so far.
        patience: None where a training ends after a number of epochs, whatever its losses are.
    """
    return bool(losses) and patience is not None and len(losses) - best_epoch(losses) >= patience


def restored_epoch(losses: Sequence[float], patience: int | None) -> int:
    """The number, from 1, of the epoch whose weights a training ends with."""
    return len(losses) if patience is None else best_epoch(losses)
