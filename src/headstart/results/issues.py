"""Possible issues in the dataset, with thumbnails, and the accuracy without test images that leak, for the page."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from headstart.results import comparison, examples
from headstart.results.audit import Issues
from headstart.results.comparison import Correct, Estimate

MAX_SHOWN = 12  # of each kind of issue; issues.csv has all
JPEG_QUALITY = 80


class Thumbnail(NamedTuple):
    """A small picture of an image of the dataset."""

    file_name: str
    split: str
    label: str
    data: str  # base64 of a JPEG


class Suspect(NamedTuple):
    """An image with an issue, with the image or class that it is compared with, if any."""

    image: Thumbnail
    similar: Thumbnail | None
    suggestion: str
    score: float


@dataclass(frozen=True, kw_only=True)
class IssueReport:
    """What the page shows of the issues."""

    counts: Mapping[str, int]  # by kind
    leaks: Sequence[Suspect]  # test images with near-duplicates in training or validation
    near_duplicates: Sequence[Suspect]  # the other pairs
    label_errors: Sequence[Suspect]
    outliers: Sequence[Suspect]
    confusable: Sequence[tuple[str, str, float]]
    shift_auc: float | None
    leaked: Sequence[int]  # indices of test images with near-duplicates in training or validation
    accuracy_without_leaks: Mapping[str, Estimate]  # by configuration; empty if all or no test images are ``leaked``


def build(
    issues: Issues,
    *,
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    file_names: Mapping[str, Sequence[str]],
    classes: Sequence[str],
    correct: Correct,
) -> IssueReport:
    """Build the report.

    Args:
        issues: with indices of the images of all splits, in the order of ``file_names``.
        images: of each split, uint8 [N, height, width] or [N, 3, height, width].
        labels: of each split, int64 [N].
        file_names: of the images, by split.
        classes: names.
        correct: of each configuration, bool [seeds, test images].
    """
    origin = [(split, index) for split, names in enumerate(file_names.values()) for index in range(len(names))]
    split_names, names = list(file_names), list(file_names.values())

    def thumbnail(image: int) -> Thumbnail:
        split, index = origin[image]
        label = classes[labels[split][index]]
        return Thumbnail(names[split][index], split_names[split], label, _encode(images[split][index]))

    def suspect(image: int, score: float, similar: int | None = None, suggestion: str = "") -> Suspect:
        return Suspect(thumbnail(image), None if similar is None else thumbnail(similar), suggestion, score)

    n_before_test = len(origin) - len(names[-1])  # test images come last
    leaks = [pair for pair in issues.near_duplicates if pair.first < n_before_test <= pair.second]
    duplicates = [pair for pair in issues.near_duplicates if not pair.first < n_before_test <= pair.second]
    leaked = sorted({pair.second - n_before_test for pair in leaks})
    kept = np.delete(np.arange(len(names[-1])), leaked)
    has_both = bool(leaked) and len(kept) > 0
    return IssueReport(
        counts={
            "near_duplicates": len(issues.near_duplicates),
            "leaks": len(leaks),
            "label_errors": len(issues.label_errors),
            "outliers": len(issues.outliers),
        },
        leaks=[suspect(pair.second, pair.similarity, pair.first) for pair in leaks[:MAX_SHOWN]],
        near_duplicates=[suspect(pair.first, pair.similarity, pair.second) for pair in duplicates[:MAX_SHOWN]],
        label_errors=[
            suspect(error.image, error.score, suggestion=classes[error.suggestion])
            for error in issues.label_errors[:MAX_SHOWN]
        ],
        outliers=[suspect(outlier.image, outlier.distance) for outlier in issues.outliers[:MAX_SHOWN]],
        confusable=[(classes[pair.first], classes[pair.second], pair.auc) for pair in issues.confusable[:MAX_SHOWN]],
        shift_auc=issues.shift_auc,
        leaked=leaked,
        accuracy_without_leaks={
            name: comparison.accuracy(values[:, kept]) for name, values in correct.items() if has_both
        },
    )


def _encode(image: np.ndarray) -> str:
    """Return an image as a small JPEG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(examples.downsize(image)).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()
