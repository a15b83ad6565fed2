"""Early stopping: end a training when the validation loss has not improved for a number of epochs."""

from collections.abc import Sequence


def best_epoch(losses: Sequence[float]) -> int:
    """Return the number, from 1, of the epoch with the lowest loss; of equal losses, the first."""
    return min(range(len(losses)), key=losses.__getitem__) + 1


def should_stop(losses: Sequence[float], patience: int | None) -> bool:
    """Return whether the last ``patience`` epochs did not lower the loss (Prechelt 1998, "Early stopping – but when?").

    A training that stops early has not necessarily converged: the loss on few validation images is noisy.

    Args:
        losses: validation losses after each epoch so far.
        patience: None if the training has a fixed number of epochs.
    """
    return bool(losses) and patience is not None and len(losses) - best_epoch(losses) >= patience


def restored_epoch(losses: Sequence[float], patience: int | None) -> int:
    """Return the number, from 1, of the epoch whose weights a training ends with."""
    return len(losses) if patience is None else best_epoch(losses)
