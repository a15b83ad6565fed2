"""Linear probes: logistic regression on the features of a frozen network (Alain and Bengio 2017), or on pixels.

The loss is convex, so a probe has no learning rate and no randomness. It is fitted in float64 until its gradient
vanishes. Probes are a cheap way to compare features. A probe of pixels is the baseline that uses no network.
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from headstart.console import UserError

C_GRID = tuple(10.0**power for power in range(-4, 2))  # C, the inverse of the regularization strength
TOLERANCE = 1e-7  # of the gradient of the mean loss: small enough that every CPU predicts the same classes
SEARCH_TOLERANCE = 1e-4  # the same while C is chosen; it halves the time
MAX_ITER = 1_000  # of Newton's method, which takes about ten iterations
N_FOLDS = 5  # of cross-validation

MAX_PIXEL_SIDE = 32  # larger images are averaged down to it for the probe of pixels


class Examples(NamedTuple):
    """Features [N, features] and labels, int64 [N]."""

    features: np.ndarray
    labels: np.ndarray


class FittedProbe(NamedTuple):
    """A probe with the lowest validation loss."""

    C: float  # one of C_GRID
    predictions: np.ndarray  # classes of the test images, int64 [N]


class CrossValidatedProbe(NamedTuple):
    """A probe whose C was chosen by cross-validation, fitted on all labeled images."""

    C: float  # one of C_GRID
    accuracy: float  # of the labeled images, each predicted by a probe that was not fitted on it
    predictions: np.ndarray  # classes of the test images, int64 [N]


def pixels(images: np.ndarray) -> np.ndarray:
    """Return images as rows of pixel values between 0 and 1: float32 [N, channels * side * side].

    Args:
        images: uint8 [N, height, width] or [N, 3, height, width]; images of more than ``MAX_PIXEL_SIDE`` pixels are
            averaged over equal areas.
    """
    with_channels = torch.from_numpy(images if images.ndim == 4 else images[:, None])
    side = min(MAX_PIXEL_SIDE, images.shape[-1])
    batches = [F.adaptive_avg_pool2d(batch.float() / 255, side).flatten(1) for batch in with_channels.split(1_000)]
    return torch.cat(batches).numpy()


def fit(training: Examples, validation: Examples, test: np.ndarray, *, n_classes: int) -> FittedProbe:
    """Fit probes with increasing C until the validation loss rises; return the last one before that.

    The probe is not refitted with the validation images: they are used for selection only, as in the other trainings.

    Args:
        training: at least one image per class.
        test: features [N, features].
    """
    # One thread: several would mostly wait for each other, which takes many times as long.
    with threadpool_limits(1):
        scaler = StandardScaler().fit(training.features.astype(np.float64))
        X_train, X_val, X_test = (
            scaler.transform(features.astype(np.float64)) for features in (training.features, validation.features, test)
        )
        model = _probe(SEARCH_TOLERANCE)
        best_loss, best_C, weights = np.inf, 0.0, (np.zeros(0), np.zeros(0))
        for C in C_GRID:
            model.set_params(C=C).fit(X_train, training.labels)
            loss = log_loss(validation.labels, model.predict_proba(X_val), labels=range(n_classes))
            if loss >= best_loss:
                break
            best_loss, best_C, weights = loss, C, (model.coef_.copy(), model.intercept_.copy())
        model.coef_, model.intercept_ = weights
        model.set_params(C=best_C, tol=TOLERANCE).fit(X_train, training.labels)
        return FittedProbe(best_C, model.predict(X_test).astype(np.int64))


def fit_cross_validated(labeled: Examples, test: np.ndarray, *, n_classes: int) -> CrossValidatedProbe:
    """Choose C by stratified cross-validation, and fit a probe on all labeled images.

    C increases until the loss rises, as in ``fit``. All features are divided by one common scale. With one scale per
    feature, as in ``fit``, a feature that is nearly constant on a few images could become huge on another image.

    Args:
        labeled: the training and the validation images.
        test: features [N, features].

    Raises:
        UserError: no class has two labeled images.
    """
    labels = labeled.labels
    n_folds = min(N_FOLDS, int(np.bincount(labels).max()))
    if n_folds < 2:
        raise UserError(f"too few labeled images for cross-validation: no class has two. Increase the smallest of "
                        f"probe_budgets. Got {len(labels)}.")  # fmt: skip
    features, mean = labeled.features.astype(np.float64), labeled.features.mean(0, dtype=np.float64)
    scale = np.sqrt(features.var(0).mean()) or 1.0
    features = (features - mean) / scale
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        folds = list(StratifiedKFold(n_folds, shuffle=True, random_state=0).split(features, labels))
        models = [_probe(SEARCH_TOLERANCE) for _ in folds]
        best_loss, best_C, accuracy = np.inf, 0.0, 0.0
        for C in C_GRID:
            probabilities = np.zeros((len(labels), n_classes))
            for model, (fitted, held_out) in zip(models, folds, strict=True):
                if len(set(labels[fitted].tolist())) == 1:  # the only image of the other class is held out
                    probabilities[held_out, labels[fitted][0]] = 1.0
                    continue
                model.set_params(C=C).fit(features[fitted], labels[fitted])
                probabilities[np.ix_(held_out, model.classes_)] = model.predict_proba(features[held_out])
            likelihoods = probabilities[np.arange(len(labels)), labels]
            loss = -np.log(likelihoods.clip(min=np.finfo(np.float64).tiny)).mean()
            if loss >= best_loss:
                break
            best_loss, best_C, accuracy = loss, C, float((probabilities.argmax(1) == labels).mean())
        model = _probe(TOLERANCE).set_params(C=best_C).fit(features, labels)
        return CrossValidatedProbe(best_C, accuracy, model.predict((test - mean) / scale).astype(np.int64))


def _probe(tolerance: float) -> LogisticRegression:
    return LogisticRegression(solver="newton-cg", tol=tolerance, max_iter=MAX_ITER, warm_start=True)
