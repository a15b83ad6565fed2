"""Possible issues in the dataset, with thumbnails, and the accuracy without test images that leak, for the page."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from headstart.results import comparison
from headstart.results.audit import Issues
from headstart.results.comparison import Correct, Estimate

MAX_SHOWN = 12  # of each kind of issue; issues.csv has all
THUMBNAIL_SIDE = 112  # pixels
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
        return Thumbnail(
            names[split][index], split_names[split], classes[labels[split][index]], _encode(images[split][index])
        )

    n_others = len(origin) - len(names[-1])  # test images come last
    leaks = [pair for pair in issues.near_duplicates if pair.first < n_others <= pair.second]
    duplicates = [pair for pair in issues.near_duplicates if not pair.first < n_others <= pair.second]
    leaked = sorted({pair.second - n_others for pair in leaks})
    kept = np.delete(np.arange(len(names[-1])), leaked)
    has_both = bool(leaked) and len(kept) > 0
    return IssueReport(
        counts={
            "near_duplicates": len(issues.near_duplicates),
            "leaks": len(leaks),
            "label_errors": len(issues.label_errors),
            "outliers": len(issues.outliers),
        },
        leaks=[
            Suspect(thumbnail(pair.second), thumbnail(pair.first), "", pair.similarity) for pair in leaks[:MAX_SHOWN]
        ],
        near_duplicates=[
            Suspect(thumbnail(pair.first), thumbnail(pair.second), "", pair.similarity)
            for pair in duplicates[:MAX_SHOWN]
        ],
        label_errors=[
            Suspect(thumbnail(error.image), None, classes[error.suggestion], error.score)
            for error in issues.label_errors[:MAX_SHOWN]
        ],
        outliers=[
            Suspect(thumbnail(outlier.image), None, "", outlier.distance) for outlier in issues.outliers[:MAX_SHOWN]
        ],
        confusable=[(classes[pair.first], classes[pair.second], pair.auc) for pair in issues.confusable[:MAX_SHOWN]],
        shift_auc=issues.shift_auc,
        leaked=leaked,
        accuracy_without_leaks={
            name: comparison.accuracy(values[:, kept]) for name, values in correct.items() if has_both
        },
    )


def _encode(image: np.ndarray) -> str:
    """Return an image as a small JPEG in base64."""
    picture = Image.fromarray(image if image.ndim == 2 else image.transpose(1, 2, 0).copy())
    if max(picture.size) > THUMBNAIL_SIDE:
        picture = picture.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()
