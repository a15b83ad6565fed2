"""When a training ends that may take as long as it needs: by its loss on validation images."""

from collections.abc import Sequence


def best(losses: Sequence[float]) -> int:
    """The number, from 1, of the epoch with the lowest of ``losses``, the first of equal ones."""
    return min(range(len(losses)), key=losses.__getitem__) + 1


def converged(losses: Sequence[float], patience: int | None) -> bool:
    """Whether the last ``patience`` epochs have brought no lower loss (Prechelt 1998, "Early stopping – but when?").

    Args:
        losses: on validation images, after each epoch so far.
        patience: None where a training ends after a number of epochs, whatever its losses are.
    """
    return bool(losses) and patience is not None and len(losses) - best(losses) >= patience


def kept(losses: Sequence[float], patience: int | None) -> int:
    """The number, from 1, of the epoch whose weights a training ends with."""
    return len(losses) if patience is None else best(losses)
