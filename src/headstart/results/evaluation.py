"""Metrics as pure functions of (logits, labels)."""

import base64
from statistics import mean

import numpy as np
from scipy.special import log_softmax, softmax
from sklearn import metrics

CALIBRATION_BINS = 15


def accuracy(*, logits: np.ndarray, labels: np.ndarray) -> float:
    """The fraction of images whose largest logit [N, classes] is their label's [N]."""
    return float(metrics.accuracy_score(labels, logits.argmax(1)))


def cross_entropy(*, logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean of the negative logarithm of the labels' probabilities."""
    return float(-log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean())


def confusion_matrix(*, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts, int64 [classes, classes]: row the actual class, column the predicted one."""
    return metrics.confusion_matrix(labels, logits.argmax(1), labels=range(logits.shape[1]))


def per_class(*, logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall and F1 of each class, float64 [classes]; 0 where nothing was predicted or nothing was there."""
    scores = metrics.precision_recall_fscore_support(
        labels, logits.argmax(1), labels=range(logits.shape[1]), zero_division=0
    )
    return dict(zip(("precision", "recall", "f1"), scores, strict=False))


def macro_f1(*, logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean of the classes' F1."""
    return float(per_class(logits=logits, labels=labels)["f1"].mean())


def balanced_accuracy(*, logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean of the classes' recall: rare classes count as much as common ones."""
    return float(per_class(logits=logits, labels=labels)["recall"][np.unique(labels)].mean())


def majority_baseline(*, training_labels: np.ndarray, labels: np.ndarray) -> tuple[int, float]:
    """Return the most frequent class of the training images and how accurate it is to always predict it.

    Args:
        training_labels: of the training images. Of equally frequent classes the first is returned.
        labels: of the images that the accuracy is measured on, [N].
    """
    label = int(np.bincount(training_labels).argmax())
    return label, float((labels == label).mean())


def is_balanced(labels: np.ndarray) -> bool:
    """Whether all classes that ``labels`` [N] has are equally common."""
    return len(set(np.unique(labels, return_counts=True)[1].tolist())) == 1


def expected_calibration_error(*, logits: np.ndarray, labels: np.ndarray) -> float:
    """How far confidence is from accuracy: Guo et al. 2017, arXiv 1706.04599, equation 3.

    Images are put into 15 equally wide, right-closed bins by their largest probability; the absolute differences
    between a bin's accuracy and its mean confidence are averaged, weighted by the number of images.
    """
    confidence, right, images = calibration(logits=logits, labels=labels).T
    return float(np.average(abs(right - confidence), weights=images))


def calibration(*, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each bin of confidence its mean confidence, accuracy and number of images: float64 [15, 3].

    0 where a bin has no image.
    """
    probabilities = softmax(logits.astype(np.float64), axis=1)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    number = np.ceil(confidence * CALIBRATION_BINS).astype(int).clip(1, CALIBRATION_BINS) - 1
    images = np.bincount(number, minlength=CALIBRATION_BINS)
    sums = [np.bincount(number, values, CALIBRATION_BINS) for values in (confidence, right)]
    return np.stack([*(each / images.clip(min=1) for each in sums), images], axis=1)


def encode_bits(right: np.ndarray) -> str:
    """Whether each image was classified rightly, bool [N], as text: base64, eight images a byte, highest bit first."""
    return base64.b64encode(np.packbits(right).tobytes()).decode("ascii")


def decode_bits(text: str, n: int) -> np.ndarray:
    """What ``encode_bits`` made of ``n`` images: bool [n].

    Raises:
        ValueError: it is of another number of images.
    """
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8))
    if not n <= len(bits) < n + 8:
        raise ValueError(f"{len(bits)} bits for {n} images")
    return bits[:n].astype(bool)


SUMMARY = {
    "test_accuracy": accuracy,
    "test_loss": cross_entropy,
    "macro_f1": macro_f1,
    "balanced_accuracy": balanced_accuracy,
    "expected_calibration_error": expected_calibration_error,
}


def summary(*, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metrics of a configuration on the test set, rounded to four places: 10,000 images tell no more.

    With equally common classes balanced accuracy is accuracy, and left out.

    Args:
        logits: of the networks of all seeds, [seeds, N, classes]; each metric is the mean over them.
    """
    return {
        name: round(mean(metric(logits=network, labels=labels) for network in logits), 4)
        for name, metric in SUMMARY.items()
        if metric is not balanced_accuracy or not is_balanced(labels)
    }
