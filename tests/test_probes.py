import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from headstart import probes
from headstart.probes import Examples


@pytest.fixture(scope="module")
def found() -> tuple[Examples, Examples, np.ndarray, probes.FittedProbe]:
    """Three classes, of which features say something, with another scale and much noise."""
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat([0, 1, 2], 60))
    centres = generator.normal(size=(3, 40))
    features = (50 + 3 * (0.3 * centres[labels] + generator.normal(size=(180, 40)))).astype(np.float32)
    training, validation = Examples(features[:90], labels[:90]), Examples(features[90:120], labels[90:120])
    return training, validation, features[120:], probes.fit(training, validation, features[120:], n_classes=3)


def test_the_strength_is_chosen_by_validation_and_by_nothing_else(found):
    training, validation, _, probe = found
    scaler = StandardScaler().fit(training.features)
    losses = {}
    for C in probes.C_GRID:
        model = LogisticRegression(C=C, max_iter=10_000, tol=1e-8)
        model.fit(scaler.transform(training.features), training.labels)
        losses[C] = log_loss(validation.labels, model.predict_proba(scaler.transform(validation.features)))
    assert min(losses, key=losses.get) == probe.C
    assert min(probes.C_GRID) < probe.C < max(probes.C_GRID)


def test_two_classes():
    generator = np.random.default_rng(0)
    labels = np.tile([0, 1], 20)
    features = (labels[:, None] + generator.normal(size=(40, 3))).astype(np.float32)
    examples = Examples(features, labels)
    probe = probes.fit(examples, examples, features, n_classes=2)
    assert (probe.predictions == labels).mean() > 0.7


def test_classes_are_predicted_for_the_test_images(found):
    training, validation, test, probe = found
    assert (probe.predictions.shape, probe.predictions.dtype) == ((60,), np.int64)
    assert set(probe.predictions) == {0, 1, 2}
    again = probes.fit(training, validation, test[:7], n_classes=3)
    assert (again.predictions == probe.predictions[:7]).all()


def test_another_order_of_additions_predicts_the_same_classes():
    """What differs from CPU to CPU is the order in which numbers are added: here, of the features and of the images."""
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
