"""Example test images: correct predictions, and the most confident mistakes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.special import softmax

from headstart.results import evaluation

MAX_CLASSES = 10
MAX_SIDE = 112  # pixels: about twice the size of an image on the page


class Example(NamedTuple):
    """A test image with its actual and its predicted class."""

    image: np.ndarray  # uint8 [height, width] if it is gray, else [height, width, 3]
    actual: str
    predicted: str
    confidence: float


class ExampleSet(NamedTuple):
    """One example per class; None if there is none."""

    correct: list[Example | None]
    wrong: list[Example | None]


def choose_examples(
    images: np.ndarray, *, labels: np.ndarray, logits: np.ndarray, classes: Sequence[str]
) -> ExampleSet:
    """Choose the first correct image and the most confident mistake of each class.

    If there are more than ``MAX_CLASSES`` classes, those with the lowest recall are chosen.

    Args:
        images: uint8 [N, height, width] or [N, 3, height, width].
        labels: integers [N].
        logits: [N, classes].
    """
    predicted, confidence = logits.argmax(1), softmax(logits, axis=1).max(1)
    chosen = ExampleSet([], [])
    is_correct = predicted == labels
    recall = evaluation.per_class(logits=logits, labels=labels)["recall"]
    for label in sorted(recall.argsort(stable=True)[:MAX_CLASSES].tolist()):
        correct, wrong = (labels == label) & is_correct, (labels == label) & ~is_correct
        most_confident = np.where(wrong, confidence, -1).argmax()
        for candidates, index, row in (
            (correct, correct.argmax(), chosen.correct),
            (wrong, most_confident, chosen.wrong),
        ):
            example = Example(
                downsize(images[index]), classes[label], classes[predicted[index]], float(confidence[index])
            )
            row.append(example if candidates.any() else None)
    return chosen


def downsize(image: np.ndarray) -> np.ndarray:
    """Return an image, uint8 [height, width] or [3, height, width], with channels last, reduced to ``MAX_SIDE``."""
    resized = Image.fromarray(image if image.ndim == 2 else image.transpose(1, 2, 0).copy())
    if max(resized.size) > MAX_SIDE:
        resized = resized.resize((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(resized)
