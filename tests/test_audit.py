"""Issues in datasets: planted faults are found, and clean data has none."""

import numpy as np
import pytest

from headstart.data import grouping
from headstart.results import audit
from headstart.results.audit import Pair

N, N_FEATURES = 60, 32  # images of each class


def dataset(n_classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return smooth noise images, features around one center per class, and labels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n_classes * N) % n_classes
    centers = 4 * generator.standard_normal((n_classes, N_FEATURES))
    features = centers[labels] + generator.standard_normal((len(labels), N_FEATURES))
    coarse = generator.integers(0, 256, (len(labels), 8, 8), dtype=np.uint8)
    return np.kron(coarse, np.ones((4, 4), np.uint8)), features, labels


def test_near_duplicates_are_found():
    images, features, _ = dataset()
    generator = np.random.default_rng(1)
    copies = np.clip(images[:5].astype(int) + generator.integers(-9, 10, images[:5].shape), 0, 255).astype(np.uint8)
    near = features[:5] + 0.05 * generator.standard_normal((5, N_FEATURES))
    pairs = audit.near_duplicates(np.concatenate([images, copies]), np.concatenate([features, near]))
    assert {(pair.first, pair.second) for pair in pairs} == {(i, len(images) + i) for i in range(5)}
    assert [pair.similarity for pair in pairs] == sorted((pair.similarity for pair in pairs), reverse=True)


@pytest.mark.parametrize("alike", ["pixels", "features"])
def test_images_that_are_alike_in_one_way_only_are_no_near_duplicates(alike):
    images, features, _ = dataset()
    if alike == "pixels":
        images[1] = images[0]
    else:
        features[1] = features[0]
    assert audit.near_duplicates(images, features) == []
    images[1], features[1] = images[0], features[0]
    assert audit.near_duplicates(images, features) == [Pair(0, 1, 1.0)]


@pytest.mark.parametrize("max_logistic", [audit.MAX_LOGISTIC, 0], ids=["logistic regression", "discriminant analysis"])
def test_wrong_labels_are_found_with_the_right_class(monkeypatch, max_logistic):
    monkeypatch.setattr(audit, "MAX_LOGISTIC", max_logistic)
    _, features, labels = dataset()
    wrong = labels.copy()
    wrong[:6] = (labels[:6] + 1) % 3
    errors = audit.label_errors(wrong, probabilities(features, wrong))
    assert {error.image: error.suggestion for error in errors} == dict(enumerate(labels[:6].tolist()))
    assert all(error.score < 0 for error in errors)
    assert audit.label_errors(labels, probabilities(features, labels)) == []


def probabilities(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return audit.out_of_sample_probabilities(features, labels, np.arange(len(labels)), label="")


def test_copies_of_an_image_do_not_vouch_for_its_label():
    """The labels are random, so only a copy in the training images of a probe could tell them."""
    generator = np.random.default_rng(0)
    features = np.repeat(generator.standard_normal((60, 200)), 2, axis=0)
    labels = np.repeat(generator.integers(0, 2, 60), 2)
    together = audit.out_of_sample_probabilities(features, labels, np.arange(120) // 2, label="")
    apart = probabilities(features, labels)
    assert (together.argmax(1) == labels).mean() < 0.7 < 0.8 < (apart.argmax(1) == labels).mean()


def test_classes_that_are_missing_or_have_few_images_are_no_problem():
    images, features, labels = dataset()
    labels[labels == 1] = 5  # classes 1, 3 and 4 have no image
    labels[0] = 3
    issues = audit.find_issues(images, features, labels, np.arange(len(labels)) >= 150)
    assert 0 in [error.image for error in issues.label_errors]


@pytest.mark.parametrize(("n_classes", "n_images"), [(2, 2), (2, 4), (40, 2), (2, 1)])
def test_tiny_datasets_are_no_problem(n_classes, n_images):
    images, features, _ = dataset()
    labels = np.repeat(np.arange(n_classes), n_images)
    n = len(labels)
    issues = audit.find_issues(images[:n], features[:n], labels, np.arange(n) >= n - 1)
    assert (issues.confusable, issues.shift_auc) == ([], None)


def test_images_that_are_all_near_duplicates_are_no_problem():
    images, features, labels = dataset()
    issues = audit.find_issues(images[:1].repeat(40, 0), features[:1].repeat(40, 0) + features[:40] * 1e-9, labels[:40],
                               np.arange(40) >= 20)  # fmt: skip
    assert issues.label_errors == []


def test_two_images_per_class_are_no_problem_for_discriminant_analysis(monkeypatch):
    monkeypatch.setattr(audit, "MAX_LOGISTIC", 0)
    labels = np.arange(10).repeat(2)
    assert probabilities(np.random.default_rng(0).normal(size=(20, 8)), labels).any(1).all()


def test_outliers_come_first():
    _, features, _ = dataset()
    features[7] = -3 * features[7]
    [first, *rest] = audit.outliers(features)
    assert first.image == 7
    assert len(rest) == 1  # one percent of 180


def test_classes_with_the_same_features_are_confusable():
    _, features, labels = dataset(n_classes=4)
    features[labels == 3] = features[labels == 2] + np.random.default_rng(1).standard_normal((N, N_FEATURES))
    [pair] = audit.confusable_classes(labels, probabilities(features, labels))
    assert (pair.first, pair.second) == (2, 3)
    assert 0.3 < pair.auc < audit.CONFUSABLE_AUC


def test_a_shifted_test_set_is_found():
    images, features, labels = dataset()
    is_test = np.arange(len(labels)) >= 120
    assert audit.find_issues(images, features, labels, is_test).shift_auc is None
    features[is_test] += 0.8
    assert audit.find_issues(images, features, labels, is_test).shift_auc > 0.9


def test_issues_are_read_as_they_were_written(tmp_path):
    images, features, labels = dataset()
    images[1], features[1] = images[0], features[0]
    labels[5] = (labels[5] + 1) % 3
    issues = audit.find_issues(images, features, labels, np.arange(len(labels)) >= 120)
    assert all(issues[:3])
    audit.write(tmp_path / "issues.json", issues)
    assert audit.read(tmp_path / "issues.json") == issues


def test_pixels_of_gray_and_color_images_are_the_same():
    images, _, _ = dataset()
    np.testing.assert_allclose(
        grouping.gray_pixels(images), grouping.gray_pixels(np.repeat(images[:, None], 3, axis=1)), atol=1e-12
    )
