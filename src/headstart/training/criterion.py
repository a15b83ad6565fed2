"""The training loss: cross-entropy, with label smoothing and class weights."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from headstart.console import UserError
from headstart.params import Configuration
from headstart.training.compute import Compute


@dataclass(frozen=True)
class Criterion:
    """Cross-entropy as ``torch.nn.functional.cross_entropy`` computes it, in two steps."""

    label_smoothing: float = 0.0
    class_weights: torch.Tensor | None = None  # float32 [classes]

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of each image, with its class weight: [N]."""
        return F.cross_entropy(
            logits, labels, weight=self.class_weights, label_smoothing=self.label_smoothing, reduction="none"
        )

    def mean(self, losses: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a batch, in which the class weights are the weights of the images."""
        if self.class_weights is None:
            return losses.mean()
        return losses.sum() / self.class_weights[labels].sum()


def make_criterion(configuration: Configuration, labels: torch.Tensor, n_classes: int, compute: Compute) -> Criterion:
    """Return the training loss of ``configuration``.

    Args:
        labels: of the training images, int64 [N].

    Raises:
        UserError: the class weights are balanced, and a class has no training image.
    """
    if configuration.class_weights == "none":
        return Criterion(configuration.label_smoothing)
    counts = labels.bincount(minlength=n_classes)
    n_missing = int((counts == 0).sum())
    if n_missing:
        raise UserError(
            f"class_weights: balanced needs a training image of each class. {n_missing} of {n_classes} classes have "
            "none. Increase the number of training images, or remove class_weights."
        )
    # As in scikit-learn's compute_class_weight, whose import takes longer than many a training.
    weights = len(labels) / (n_classes * counts.double())
    return Criterion(configuration.label_smoothing, weights.float().to(compute.device))
