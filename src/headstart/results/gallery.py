"""Test images that are worth looking at: what a network has right, and what it has wrong and is sure of."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import softmax


class Example(NamedTuple):
    """A test image, uint8 [height, width], with what it is and what it was taken for."""

    image: np.ndarray
    actual: str
    predicted: str
    confidence: float


class Gallery(NamedTuple):
    """One of each class; None where there is none."""

    right: list[Example | None]
    wrong: list[Example | None]


def choose_examples(images: np.ndarray, *, labels: np.ndarray, logits: np.ndarray, classes: Sequence[str]) -> Gallery:
    """Of each class the first image that is classified rightly, and the mistake that the network is surest of.

    Args:
        images: uint8 [N, height, width].
        labels: integers [N].
        logits: [N, classes].
    """
    predicted, confidence = logits.argmax(1), softmax(logits, axis=1).max(1)
    chosen = Gallery([], [])
    for label, name in enumerate(classes):
        hits, misses = ((labels == label) & (right == (predicted == label)) for right in (True, False))
        surest = np.where(misses, confidence, -1).argmax()
        for found, at, row in ((hits, hits.argmax(), chosen.right), (misses, surest, chosen.wrong)):
            example = Example(images[at], name, classes[predicted[at]], float(confidence[at]))
            row.append(example if found.any() else None)
    return chosen
