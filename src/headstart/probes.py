"""Linear probes: logistic regression on the features that a frozen network puts out.

The cheap form of a comparison of features (Alain and Bengio 2017): convex, so there is no learning rate and no chance
in it, and a number of steps that is enough is as good as any other.
"""

import warnings
from typing import NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

STRENGTHS = tuple(10.0**power for power in range(-4, 2))  # C, the inverse of the L2 penalty's weight
STEPS = 300  # of the solver at most: by then the loss of all that is worth choosing has settled


class Examples(NamedTuple):
    """Features, float32 [N, features], and labels, int64 [N]."""

    features: np.ndarray
    labels: np.ndarray


class Probe(NamedTuple):
    """A probe that was chosen."""

    strength: float  # one of STRENGTHS
    validation_loss: float
    logits: np.ndarray  # of the test images, float32 [N, classes]


def fit(training: Examples, validation: Examples, test: np.ndarray, *, n_classes: int) -> Probe:
    """Fit with every strength, and choose by the loss on ``validation``; of equal ones the stronger penalty.

    It is not fitted anew with the validation images: a choice is what they are for, as in the other trainings.

    Args:
        training: with at least one image of every class.
        test: features, float32 [N, features].
    """
    # Several threads wait for each other, many times as long, and give other last digits.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # with so weak a penalty that another one is chosen
        return _fit(training, validation, test, n_classes)


def _fit(training: Examples, validation: Examples, test: np.ndarray, n_classes: int) -> Probe:
    scaler = StandardScaler().fit(training.features)
    inputs, asked, rows = (scaler.transform(each) for each in (training.features, validation.features, test))
    model = LogisticRegression(max_iter=STEPS, warm_start=True)
    found = []
    for strength in STRENGTHS:
        model.set_params(C=strength)
        model.fit(inputs, training.labels)
        loss = float(log_loss(validation.labels, model.predict_proba(asked), labels=range(n_classes)))
        found.append(Probe(strength, loss, _logits(model, rows)))
    return min(found, key=lambda probe: probe.validation_loss)


def _logits(model: LogisticRegression, rows: np.ndarray) -> np.ndarray:
    """Float32 [N, classes]; of two classes scikit-learn has one number, how much larger the second's is."""
    scores = model.decision_function(rows).astype(np.float32)
    return scores if scores.ndim == 2 else np.stack([np.zeros_like(scores), scores], axis=1)
