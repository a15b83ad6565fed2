"""Test images that are worth looking at: what a network has right, and what it has wrong and is sure of."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.special import softmax

from headstart.results import evaluation

MAX_CLASSES = 10  # classes
MAX_SIDE = 112  # pixels of an image that is shown: about twice what it has on the page


class Example(NamedTuple):
    """A test image with what it is and what it was taken for."""

    image: np.ndarray  # uint8 [height, width] if it is gray, else [height, width, 3]
    actual: str
    predicted: str
    confidence: float


class ExampleSet(NamedTuple):
    """One of each class; None where there is none."""

    right: list[Example | None]
    wrong: list[Example | None]


def choose_examples(
    images: np.ndarray, *, labels: np.ndarray, logits: np.ndarray, classes: Sequence[str]
) -> ExampleSet:
    """Of each class the first image that is classified rightly, and the mistake that the network is surest of.

    Of many classes, those ten that it recognizes least.

    Args:
        images: uint8 [N, height, width] or [N, 3, height, width].
        labels: integers [N].
        logits: [N, classes].
    """
    predicted, confidence = logits.argmax(1), softmax(logits, axis=1).max(1)
    chosen = ExampleSet([], [])
    recall = evaluation.per_class(logits=logits, labels=labels)["recall"]
    for label in sorted(recall.argsort(stable=True)[:MAX_CLASSES].tolist()):
        name = classes[label]
        hits, misses = ((labels == label) & (right == (predicted == label)) for right in (True, False))
        surest = np.where(misses, confidence, -1).argmax()
        for found, at, row in ((hits, hits.argmax(), chosen.right), (misses, surest, chosen.wrong)):
            example = Example(_small(images[at]), name, classes[predicted[at]], float(confidence[at]))
            row.append(example if found.any() else None)
    return chosen


def _small(image: np.ndarray) -> np.ndarray:
    shown = Image.fromarray(image if image.ndim == 2 else image.transpose(1, 2, 0).copy())
    if max(shown.size) > MAX_SIDE:
        shown = shown.resize((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(shown)
