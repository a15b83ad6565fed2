"""Linear probes: logistic regression on the features that a frozen network puts out.

The cheap form of a comparison of features (Alain and Bengio 2017). The loss is convex, so a probe has no learning rate
and no randomness. It is fitted in float64 until its gradient vanishes.
"""

from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

C_GRID = tuple(10.0**power for power in range(-4, 2))  # C, the inverse of the L2 penalty's weight
TOLERANCE = 1e-7  # of the gradient of the mean loss: small enough for every CPU to predict the same classes
COARSE = 1e-4  # the same, small enough to choose a C: half of the time
MAX_ITER = 1_000  # of Newton's method at most: it takes about ten


class Examples(NamedTuple):
    """Features, [N, features], and labels, int64 [N]."""

    features: np.ndarray
    labels: np.ndarray


class FittedProbe(NamedTuple):
    """The probe with the lowest validation loss."""

    C: float  # one of C_GRID
    predictions: np.ndarray  # classes of the test images, int64 [N]


def fit(training: Examples, validation: Examples, test: np.ndarray, *, n_classes: int) -> FittedProbe:
    """Fit with increasing ``C_GRID`` until the loss on ``validation`` rises, and choose the one before.

    The probe is not fitted again with the validation images: they are used to choose, as in the other trainings.

    Args:
        training: with at least one image of every class.
        test: features, [N, features].
    """
    # Several threads wait for each other, many times as long.
    with threadpool_limits(1):
        scaler = StandardScaler().fit(training.features.astype(np.float64))
        inputs, validation_inputs, test_inputs = (
            scaler.transform(features.astype(np.float64)) for features in (training.features, validation.features, test)
        )
        model = LogisticRegression(solver="newton-cg", tol=COARSE, max_iter=MAX_ITER, warm_start=True)
        lowest, best, weights = np.inf, 0.0, (np.zeros(0), np.zeros(0))
        for C in C_GRID:
            model.set_params(C=C).fit(inputs, training.labels)
            loss = log_loss(validation.labels, model.predict_proba(validation_inputs), labels=range(n_classes))
            if loss >= lowest:
                break
            lowest, best, weights = loss, C, (model.coef_.copy(), model.intercept_.copy())
        model.coef_, model.intercept_ = weights
        model.set_params(C=best, tol=TOLERANCE).fit(inputs, training.labels)
        return FittedProbe(best, model.predict(test_inputs).astype(np.int64))
