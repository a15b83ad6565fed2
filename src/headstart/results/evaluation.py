"""Metrics as pure functions of (logits, labels)."""

import base64
from statistics import mean

import numpy as np
import torch
import torch.nn.functional as F

CALIBRATION_BINS = 15


def accuracy(*, logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The fraction of images whose largest logit [N, classes] is their label's [N]."""
    return (logits.argmax(1) == labels).double().mean().item()


def confusion_matrix(*, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Counts, int64 [classes, classes]: row the actual class, column the predicted one."""
    n_classes = logits.shape[1]
    return torch.bincount(labels * n_classes + logits.argmax(1), minlength=n_classes**2).view(n_classes, n_classes)


def per_class(confusion: torch.Tensor) -> dict[str, torch.Tensor]:
    """Precision, recall and F1 of each class, float64 [classes]; 0 where nothing was predicted or nothing was there."""
    right = confusion.diagonal().double()
    predicted, actual = confusion.sum(0), confusion.sum(1)
    return {
        "precision": right / predicted.clamp(min=1),
        "recall": right / actual.clamp(min=1),
        "f1": 2 * right / (predicted + actual).clamp(min=1),
    }


def macro_f1(*, logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The mean of the classes' F1."""
    return per_class(confusion_matrix(logits=logits, labels=labels))["f1"].mean().item()


def expected_calibration_error(*, logits: torch.Tensor, labels: torch.Tensor) -> float:
    """How far confidence is from accuracy: Guo et al. 2017, arXiv 1706.04599, equation 3.

    Images are put into 15 equally wide, right-closed bins by their largest probability; the absolute differences
    between a bin's accuracy and its mean confidence are averaged, weighted by the number of images.
    """
    bins = calibration(logits=logits, labels=labels)
    return (bins[:, 2] * (bins[:, 1] - bins[:, 0]).abs()).sum().item() / len(labels)


def calibration(*, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """For each bin of confidence its mean confidence, accuracy and number of images: float64 [15, 3].

    0 where a bin has no image.
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    number = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
    each = torch.stack([confidence, (predicted == labels).double(), torch.ones_like(confidence)], dim=1)
    sums = torch.zeros(CALIBRATION_BINS, 3, dtype=torch.float64).index_add(0, number, each)
    sums[:, :2] /= sums[:, 2:].clamp(min=1)
    return sums


def pack(right: np.ndarray) -> str:
    """Whether each image was classified rightly, bool [N], as text: base64, eight images a byte, highest bit first."""
    return base64.b64encode(np.packbits(right).tobytes()).decode("ascii")


def unpack(text: str, n: int) -> np.ndarray:
    """What ``pack`` made of ``n`` images: bool [n].

    Raises:
        ValueError: it is of another number of images.
    """
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8))
    if not n <= len(bits) < n + 8:
        raise ValueError(f"{len(bits)} bits for {n} images")
    return bits[:n].astype(bool)


def summary(*, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """The metrics of a configuration on the test set, rounded to four places: 10,000 images tell no more.

    Args:
        logits: of the networks of all seeds, [seeds, N, classes]; each metric is the mean over them.
    """
    metrics = {
        "test_accuracy": accuracy,
        "test_loss": lambda *, logits, labels: F.cross_entropy(logits.double(), labels).item(),
        "macro_f1": macro_f1,
        "expected_calibration_error": expected_calibration_error,
    }
    return {
        name: round(mean(metric(logits=network, labels=labels) for network in logits), 4)
        for name, metric in metrics.items()
    }
