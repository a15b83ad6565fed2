"""Metrics as pure functions of (logits, labels)."""

import base64
from statistics import mean

import numpy as np
from scipy.special import log_softmax, softmax
from sklearn import metrics

CALIBRATION_BINS = 15


def accuracy(*, logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction of images whose largest logit [N, classes] is that of their label [N]."""
    return float(metrics.accuracy_score(labels, logits.argmax(1)))


def cross_entropy(*, logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean negative log-likelihood of the labels."""
    return float(-log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean())


def confusion_matrix(*, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return counts, int64 [classes, classes]: rows are actual classes, columns predicted ones."""
    return metrics.confusion_matrix(labels, logits.argmax(1), labels=range(logits.shape[1]))


def per_class(*, logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return precision, recall and F1 of each class, float64 [classes]; 0 if the denominator is 0."""
    scores = metrics.precision_recall_fscore_support(
        labels, logits.argmax(1), labels=range(logits.shape[1]), zero_division=0
    )
    return dict(zip(("precision", "recall", "f1"), scores, strict=False))


def macro_f1(*, logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean F1 of the classes."""
    return float(per_class(logits=logits, labels=labels)["f1"].mean())


def balanced_accuracy(*, logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean recall of the classes that occur: rare classes count as much as common ones."""
    return float(per_class(logits=logits, labels=labels)["recall"][np.unique(labels)].mean())


def majority_baseline(*, training_labels: np.ndarray, labels: np.ndarray) -> tuple[int, float]:
    """Return the most frequent class of the training images and the accuracy of always predicting it.

    Args:
        training_labels: of the training images. If several classes are equally frequent, the first is returned.
        labels: of the images that the accuracy is measured on, [N].
    """
    label = int(np.bincount(training_labels).argmax())
    return label, float((labels == label).mean())


def is_balanced(labels: np.ndarray) -> bool:
    """Return whether all classes that occur in ``labels`` [N] are equally common."""
    return len(set(np.unique(labels, return_counts=True)[1].tolist())) == 1


def expected_calibration_error(*, logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean difference between confidence and accuracy: Guo et al. 2017, arXiv 1706.04599, equation 3.

    Images are put into 15 equally wide, right-closed bins by their largest probability. The absolute differences
    between a bin's accuracy and its mean confidence are averaged, weighted by the number of images.
    """
    confidence, accuracies, images = calibration(logits=logits, labels=labels).T
    return float(np.average(abs(accuracies - confidence), weights=images))


def calibration(*, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return mean confidence, accuracy and number of images of each bin of confidence: float64 [15, 3].

    All three are 0 for a bin without images.
    """
    probabilities = softmax(logits.astype(np.float64), axis=1)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    bins = np.ceil(confidence * CALIBRATION_BINS).astype(int).clip(1, CALIBRATION_BINS) - 1
    images = np.bincount(bins, minlength=CALIBRATION_BINS)
    means = [np.bincount(bins, values, CALIBRATION_BINS) / images.clip(min=1) for values in (confidence, correct)]
    return np.stack([*means, images], axis=1)


def pool_seeds(*, logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return ``logits`` [seeds, N, classes] and ``labels`` [N] of all seeds together, as of seeds * N images."""
    return {"logits": logits.reshape(-1, logits.shape[-1]), "labels": np.tile(labels, len(logits))}


def encode_bits(correct: np.ndarray) -> str:
    """Encode per-image correctness, bool [N], as base64: eight images per byte, highest bit first."""
    return base64.b64encode(np.packbits(correct).tobytes()).decode("ascii")


def decode_bits(text: str, n: int) -> np.ndarray:
    """Decode the text that ``encode_bits`` returned for ``n`` images: bool [n].

    Raises:
        ValueError: the text encodes another number of images.
    """
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8))
    if not n <= len(bits) < n + 8:
        raise ValueError(f"{len(bits)} bits for {n} images")
    return bits[:n].astype(bool)


SUMMARY = {  # every metric in metrics/<study>/<configuration>.json that follows from the logits
    "test_accuracy": accuracy,
    "test_loss": cross_entropy,
    "macro_f1": macro_f1,
    "balanced_accuracy": balanced_accuracy,
    "expected_calibration_error": expected_calibration_error,
}


def summary(*, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the metrics of ``SUMMARY`` on the test set, rounded to four places: 10,000 images allow no more.

    Balanced accuracy is left out if the classes are equally common, because it is accuracy then.

    Args:
        logits: of all seeds, [seeds, N, classes]; each metric is the mean over the seeds.
    """
    return {
        name: round(mean(metric(logits=seed_logits, labels=labels) for seed_logits in logits), 4)
        for name, metric in SUMMARY.items()
        if metric is not balanced_accuracy or not is_balanced(labels)
    }
