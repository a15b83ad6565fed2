"""Possible issues in a dataset: near-duplicates, label errors, outliers, confusable classes, and a shifted test set.

They are found with features of the frozen pretrained network, near-duplicates with pixels too. An issue is a hint to
check an image, not proof of an error. Thresholds were chosen on photographs (TrashNet): ``benchmarks/audit.py``
measures precision and recall.
"""

import warnings
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import mannwhitneyu
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from headstart import files
from headstart.console import progress
from headstart.data import grouping

FEATURE_SIMILARITY = 0.88  # minimum cosine similarity of the centered features of near-duplicates
PIXEL_CORRELATION = 0.9  # minimum correlation of the centered gray images of near-duplicates
MAX_PAIRS = 10_000  # near-duplicates that are stored
N_FOLDS = 5
C = 0.01  # inverse regularization strength (features are standardized); best of four values on TrashNet
MAX_LOGISTIC = 10**9  # images × features × classes: above, one logistic regression would take a minute or more
SHRINKAGE = 0.5  # of the covariance in linear discriminant analysis
OUTLIER_NEIGHBORS = 10
OUTLIER_SHARE = 0.01  # of the images, those with the largest distances to others are reported as outliers
MIN_CLASS_IMAGES = 10  # smaller classes are not compared
CONFUSABLE_AUC = 0.8  # pairs of classes with a smaller area under the ROC curve are confusable
SHIFT_AUC = 0.6  # the test set is shifted if a probe separates it from the rest with at least this AUC ...
SHIFT_P = 0.01  # ... and a smaller p-value
DIGITS = 4  # decimal places of scores; features on different kinds of CPUs differ from the sixth on


class Pair(NamedTuple):
    """Two near-duplicates, by their indices, and the cosine of their features."""

    first: int
    second: int
    similarity: float


class LabelError(NamedTuple):
    """An image whose label is probably wrong."""

    image: int  # its index
    suggestion: int  # the class that the probes predict
    score: float  # probability of the label minus that of the suggestion; the smaller, the likelier an error


class Outlier(NamedTuple):
    """An image that is far from its nearest neighbors."""

    image: int  # its index
    distance: float  # mean cosine distance to its nearest neighbors


class ConfusablePair(NamedTuple):
    """Two classes that the probes can hardly tell apart."""

    first: int
    second: int
    auc: float


class Issues(NamedTuple):
    """All issues of a dataset, each list with the strongest first."""

    near_duplicates: list[Pair]
    label_errors: list[LabelError]
    outliers: list[Outlier]
    confusable: list[ConfusablePair]
    shift_auc: float | None  # AUC of a probe that separates test images from the rest; None without a shift


NO_ISSUES = Issues([], [], [], [], None)


def write(path: str | Path, issues: Issues) -> None:
    files.write_json(path, issues._asdict())


def read(path: str | Path) -> Issues:
    """Read a file that ``write`` has written."""
    content = files.read_json(path)
    return Issues(
        near_duplicates=[Pair(*values) for values in content["near_duplicates"]],
        label_errors=[LabelError(*values) for values in content["label_errors"]],
        outliers=[Outlier(*values) for values in content["outliers"]],
        confusable=[ConfusablePair(*values) for values in content["confusable"]],
        shift_auc=content["shift_auc"],
    )


def find_issues(images: np.ndarray, features: np.ndarray, labels: np.ndarray, is_test: np.ndarray) -> Issues:
    """Return the possible issues of a dataset.

    Args:
        images: uint8 [N, height, width] or [N, 3, height, width].
        features: of the frozen network, [N, features].
        labels: int64 [N].
        is_test: whether each image is a test image, bool [N].
    """
    features = features.astype(np.float64)
    pairs = near_duplicates(images, features)
    groups = grouping.group_pairs(len(labels), [pair.first for pair in pairs], [pair.second for pair in pairs])
    probabilities = out_of_sample_probabilities(features, labels, groups, label="label errors")
    return Issues(
        near_duplicates=pairs,
        label_errors=label_errors(labels, probabilities),
        outliers=outliers(features),
        confusable=confusable_classes(labels, probabilities),
        shift_auc=_shift_auc(features, is_test, groups),
    )


def near_duplicates(images: np.ndarray, features: np.ndarray) -> list[Pair]:
    """Return the pairs of images that are similar in features and in pixels, the most similar first.

    Features and pixels are centered on the mean of the dataset, so what all images share does not count as similarity.
    """
    if len(images) < 2:
        return []
    centered, pixels = grouping.normalize(features - features.mean(0)), grouping.gray_pixels(images)
    search = NearestNeighbors(radius=1 - FEATURE_SIMILARITY, metric="cosine").fit(centered)
    distances, neighbors = search.radius_neighbors(centered)
    pairs = []
    for first, (indices, values) in enumerate(zip(neighbors, distances, strict=True)):
        is_similar = (indices > first) & (pixels[indices] @ pixels[first] >= PIXEL_CORRELATION)
        pairs += [
            Pair(first, second, round(1 - distance, DIGITS))
            for second, distance in zip(indices[is_similar].tolist(), values[is_similar].tolist(), strict=True)
        ]
    return sorted(pairs, key=lambda pair: -pair.similarity)[:MAX_PAIRS]


def out_of_sample_probabilities(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, label: str
) -> np.ndarray:
    """Return the probabilities of linear probes that were not fitted on the image or its group, [N, classes].

    They are 0 for images without such a probe, because there are too few images.

    Args:
        label: of the progress bar.
    """
    probabilities = np.zeros((len(labels), labels.max() + 1))
    n_folds = min(N_FOLDS, len(np.unique(groups)), np.bincount(labels).max())
    if n_folds < 2:
        return probabilities
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=0)
    # One thread: several would mostly wait for each other.
    with threadpool_limits(1), warnings.catch_warnings(), progress(folds.n_splits, label, unit=" probes") as bar:
        warnings.simplefilter("ignore", UserWarning)  # a class has fewer images than folds
        for training, held_out in folds.split(features, labels, groups):
            if len(np.unique(labels[training])) > 1:
                scaler = StandardScaler().fit(features[training])
                model = _linear_model(features[training], labels[training]).fit(
                    scaler.transform(features[training]), labels[training]
                )
                predicted = model.predict_proba(scaler.transform(features[held_out]))
                probabilities[held_out[:, None], model.classes_] = predicted
            bar.update()
    return probabilities


def _linear_model(features: np.ndarray, labels: np.ndarray) -> LogisticRegression | LinearDiscriminantAnalysis:
    """Return a logistic regression, or for a large problem a linear discriminant analysis, whose solution is direct.

    The analysis reports about twice as many label errors, and needs more images than classes.
    """
    n_classes = len(np.unique(labels))
    if features.size * n_classes > MAX_LOGISTIC and len(labels) > n_classes:
        return LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE)
    return LogisticRegression(C=C, solver="newton-cg", tol=1e-6, max_iter=1_000)


def label_errors(labels: np.ndarray, probabilities: np.ndarray) -> list[LabelError]:
    """Return the images whose label is probably wrong, by confident learning (Northcutt et al. 2021)."""
    from cleanlab.filter import find_label_issues  # imports slowly, and only datasets of files need it

    is_known = probabilities.any(1)
    if not is_known.any():
        return []
    known = np.flatnonzero(is_known)
    probabilities = probabilities[known]
    present, dense = np.unique(labels[known], return_inverse=True)  # cleanlab requires an image of every class
    columns = probabilities[:, present] + 1e-12
    columns /= columns.sum(1, keepdims=True)
    indices = find_label_issues(
        dense, columns, filter_by="low_normalized_margin", return_indices_ranked_by="normalized_margin", n_jobs=1
    )
    return [
        LabelError(int(known[index]), int(present[columns[index].argmax()]),
                   round(float(columns[index, dense[index]] - columns[index].max()), DIGITS))
        for index in indices.tolist()
        if columns[index].argmax() != dense[index]
    ]  # fmt: skip


def outliers(features: np.ndarray) -> list[Outlier]:
    """Return the images with the largest mean distance to their nearest neighbors."""
    k = min(OUTLIER_NEIGHBORS, len(features) - 1)
    centered = grouping.normalize(features - features.mean(0))
    neighbors = NearestNeighbors(n_neighbors=k + 1, metric="cosine").fit(centered)
    distances = neighbors.kneighbors(centered)[0][:, 1:].mean(1)
    order = (-distances).argsort(kind="stable")[: round(OUTLIER_SHARE * len(features))]
    return [Outlier(index, round(float(distances[index]), DIGITS)) for index in order.tolist()]


def confusable_classes(labels: np.ndarray, probabilities: np.ndarray) -> list[ConfusablePair]:
    """Return the pairs of classes that the probes can hardly tell apart, the smallest area under the ROC curve first.

    Only pairs that the probes confuse are examined.
    """
    predicted = probabilities.argmax(1)
    counts = np.bincount(labels)
    confused = {tuple(sorted(pair)) for pair in zip(labels.tolist(), predicted.tolist(), strict=True)}
    pairs = []
    for first, second in combinations(np.flatnonzero(counts >= MIN_CLASS_IMAGES).tolist(), 2):
        if (first, second) in confused:
            margin = probabilities[:, second] - probabilities[:, first]
            area = auc(margin[labels == second], margin[labels == first])
            if area < CONFUSABLE_AUC:
                pairs.append(ConfusablePair(first, second, area))
    return sorted(pairs, key=lambda pair: pair.auc)


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return the area under the ROC curve: the share of pairs in which the positive score is larger."""
    return round(float(mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative))), DIGITS)


def _shift_auc(features: np.ndarray, is_test: np.ndarray, groups: np.ndarray) -> float | None:
    """Return the AUC of a probe that separates test images from the rest; None without a shift.

    This is a classifier two-sample test (Lopez-Paz and Oquab 2017).
    """
    if min(is_test.sum(), (~is_test).sum()) < MIN_CLASS_IMAGES:
        return None
    probabilities = out_of_sample_probabilities(features, is_test.astype(np.int64), groups, label="test images")[:, 1]
    area = auc(probabilities[is_test], probabilities[~is_test])
    p = mannwhitneyu(probabilities[is_test], probabilities[~is_test], alternative="greater").pvalue
    return area if area >= SHIFT_AUC and p < SHIFT_P else None
