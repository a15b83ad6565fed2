import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from headstart import probes
from headstart.probes import Examples


@pytest.fixture(scope="module")
def found() -> tuple[Examples, Examples, np.ndarray, probes.Probe]:
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
    for strength in probes.STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=10_000, tol=1e-8)
        model.fit(scaler.transform(training.features), training.labels)
        losses[strength] = log_loss(validation.labels, model.predict_proba(scaler.transform(validation.features)))
    assert probe.strength == min(losses, key=losses.get)
    assert probe.validation_loss == pytest.approx(min(losses.values()), rel=0.01)
    assert min(probes.STRENGTHS) < probe.strength < max(probes.STRENGTHS)


def test_two_classes_have_two_logits():
    generator = np.random.default_rng(0)
    labels = np.tile([0, 1], 20)
    features = (labels[:, None] + generator.normal(size=(40, 3))).astype(np.float32)
    made = Examples(features, labels)
    probe = probes.fit(made, made, features, n_classes=2)
    assert probe.logits.shape == (40, 2)
    assert (probe.logits.argmax(1) == labels).mean() > 0.7


def test_logits_are_of_the_test_images(found):
    training, validation, test, probe = found
    assert probe.logits.shape == (60, 3)
    assert probe.logits.dtype == np.float32
    again = probes.fit(training, validation, test[:7], n_classes=3)
    np.testing.assert_allclose(again.logits, probe.logits[:7], rtol=1e-5)
