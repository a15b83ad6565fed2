import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler

from headstart import probes
from headstart.console import UserError
from headstart.probes import Examples


@pytest.fixture(scope="module")
def fitted() -> tuple[Examples, Examples, np.ndarray, probes.FittedProbe]:
    """Return data with three classes and noisy features that are not standardized, and a probe fitted to it."""
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat([0, 1, 2], 60))
    centers = generator.normal(size=(3, 40))
    features = (50 + 3 * (0.3 * centers[labels] + generator.normal(size=(180, 40)))).astype(np.float32)
    training, validation = Examples(features[:90], labels[:90]), Examples(features[90:120], labels[90:120])
    return training, validation, features[120:], probes.fit(training, validation, features[120:], n_classes=3)


def test_c_has_the_lowest_validation_loss(fitted):
    training, validation, _, probe = fitted
    scaler = StandardScaler().fit(training.features)
    losses = {}
    for C in probes.C_GRID:
        model = LogisticRegression(C=C, max_iter=10_000, tol=1e-8)
        model.fit(scaler.transform(training.features), training.labels)
        losses[C] = log_loss(validation.labels, model.predict_proba(scaler.transform(validation.features)))
    assert min(losses, key=losses.get) == probe.C
    assert min(probes.C_GRID) < probe.C < max(probes.C_GRID)


def test_two_classes_are_predicted():
    generator = np.random.default_rng(0)
    labels = np.tile([0, 1], 20)
    features = (labels[:, None] + generator.normal(size=(40, 3))).astype(np.float32)
    examples = Examples(features, labels)
    probe = probes.fit(examples, examples, features, n_classes=2)
    assert (probe.predictions == labels).mean() > 0.7


def test_predictions_are_classes_and_independent_of_each_other(fitted):
    training, validation, test, probe = fitted
    assert (probe.predictions.shape, probe.predictions.dtype) == ((60,), np.int64)
    assert set(probe.predictions) == {0, 1, 2}
    refitted = probes.fit(training, validation, test[:7], n_classes=3)
    assert (refitted.predictions == probe.predictions[:7]).all()


def test_the_order_of_summation_does_not_change_predictions():
    """CPUs differ in the order in which they add numbers. Here the order of the features and of the images changes."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 5, 2_600)
    features = (generator.normal(size=(5, 120))[labels] + 4 * generator.normal(size=(2_600, 120))).astype(np.float32)

    def predict(columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
        training = Examples(features[:400][rows][:, columns], labels[:400][rows])
        validation = Examples(features[400:600][:, columns], labels[400:600])
        return probes.fit(training, validation, features[600:][:, columns], n_classes=5).predictions

    expected = predict(np.arange(120), np.arange(400))
    assert 0.3 < (expected == labels[600:]).mean() < 0.9  # many images are close to two classes
    for _ in range(5):
        assert (predict(generator.permutation(120), generator.permutation(400)) == expected).all()


def test_pixels_are_averaged_over_equal_areas_and_scaled():
    gray = np.arange(2 * 28 * 28).reshape(2, 28, 28).astype(np.uint8)
    np.testing.assert_allclose(probes.pixels(gray), gray.reshape(2, -1) / 255, rtol=1e-6)
    color = np.random.default_rng(0).integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)
    expected = color.reshape(3, 3, 32, 2, 32, 2).mean((3, 5)).reshape(3, -1) / 255
    np.testing.assert_allclose(probes.pixels(color), expected, rtol=1e-5)


def labeled_images(n: int, n_classes: int, seed: int = 0) -> Examples:
    """Return images whose features have different scales."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    centers = generator.normal(size=(n_classes, 30))
    features = 20 + (0.4 * centers[labels] + generator.normal(size=(n, 30))) * np.linspace(0.1, 5, 30)
    return Examples(features.astype(np.float32), labels)


def test_c_has_the_lowest_cross_validated_loss():
    examples = labeled_images(150, 3)
    probe = probes.fit_cross_validated(examples, examples.features, n_classes=3)
    features = examples.features.astype(np.float64)
    features = (features - features.mean(0)) / np.sqrt(features.var(0).mean())
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    losses, accuracies = {}, {}
    for C in probes.C_GRID:
        model = LogisticRegression(C=C, max_iter=10_000, tol=1e-8)
        probabilities = cross_val_predict(model, features, examples.labels, cv=folds, method="predict_proba")
        losses[C] = log_loss(examples.labels, probabilities)
        accuracies[C] = (probabilities.argmax(1) == examples.labels).mean()
    assert min(losses, key=losses.get) == probe.C
    assert min(probes.C_GRID) < probe.C < max(probes.C_GRID)
    assert probe.accuracy == pytest.approx(accuracies[probe.C])
    expected = LogisticRegression(C=probe.C, max_iter=10_000, tol=1e-8).fit(features, examples.labels)
    assert np.array_equal(probe.predictions, expected.predict(features))


def test_a_feature_that_is_constant_on_most_images_does_not_spoil_the_choice_of_c():
    examples = labeled_images(60, 3)
    features = np.hstack([examples.features, np.full((60, 20), 1.0, dtype=np.float32)])
    features[np.arange(20), 30 + np.arange(20)] += 1e-3  # different on one image each
    chosen = probes.fit_cross_validated(Examples(features, examples.labels), features, n_classes=3)
    assert chosen.C == probes.fit_cross_validated(examples, examples.features, n_classes=3).C


@pytest.mark.parametrize("counts", [(10, 1), (2, 1), (6, 1, 1, 1)], ids=str)
def test_classes_with_one_image_can_be_cross_validated(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    features = labels[:, None] + np.random.default_rng(0).normal(size=(len(labels), 4)).astype(np.float32)
    probe = probes.fit_cross_validated(Examples(features, labels), features, n_classes=len(counts))
    assert 0 <= probe.accuracy <= 1
    assert set(probe.predictions) <= set(labels)


def test_cross_validation_needs_two_images_of_a_class():
    examples = Examples(np.eye(3, dtype=np.float32), np.arange(3))
    with pytest.raises(UserError, match="too few labeled images for cross-validation: no class has two"):
        probes.fit_cross_validated(examples, examples.features, n_classes=3)
