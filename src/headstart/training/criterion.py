"""The training loss: cross-entropy, with label smoothing and class weights."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

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
    n_missing = n_classes - len(labels.unique())
    if n_missing:
        raise UserError(
            f"class_weights: balanced needs a training image of each class. {n_missing} of {n_classes} classes have "
            "none. Increase the number of training images, or remove class_weights."
        )
    weights = compute_class_weight("balanced", classes=np.arange(n_classes), y=labels.numpy())
    return Criterion(configuration.label_smoothing, torch.tensor(weights, dtype=torch.float32, device=compute.device))
