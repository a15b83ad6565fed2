import numpy as np
import pytest
import torch

from headstart.results import epochs, evaluation

# Six images of three classes, computed by hand:
# actual 0 0 1 1 2 2, predicted 0 1 1 1 0 2: rows are actual, columns predicted classes [[1,1,0],[0,2,0],[1,0,1]].
LABELS = np.array([0, 0, 1, 1, 2, 2])
PREDICTED = np.array([0, 1, 1, 1, 0, 2])
LOGITS = np.eye(3, dtype=np.float32)[PREDICTED]


def test_confusion_by_hand():
    confusion = evaluation.confusion_matrix(logits=LOGITS, labels=LABELS)
    assert confusion.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 1]]


def test_precision_recall_f1_by_hand():
    scores = evaluation.per_class(logits=LOGITS, labels=LABELS)
    assert scores["precision"].tolist() == pytest.approx([1 / 2, 2 / 3, 1])
    assert scores["recall"].tolist() == pytest.approx([1 / 2, 1, 1 / 2])
    assert scores["f1"].tolist() == pytest.approx([1 / 2, 4 / 5, 2 / 3])


def test_a_class_without_images_scores_zero():
    scores = evaluation.per_class(logits=np.eye(2)[[0, 0, 0]], labels=np.array([0, 0, 0]))
    assert {name: values.tolist() for name, values in scores.items()} == {
        "precision": [1.0, 0.0],
        "recall": [1.0, 0.0],
        "f1": [1.0, 0.0],
    }


def test_calibration_by_hand():
    # Confidences 0.95, 0.95 (bin 15, one of two correct) and 0.61 (bin 10, correct): 2/3·|0.5 - 0.95| + 1/3·|1 - 0.61|.
    logits, labels = np.log([[0.95, 0.05], [0.95, 0.05], [0.39, 0.61]]), np.array([0, 1, 1])
    error = evaluation.expected_calibration_error(logits=logits, labels=labels)
    assert error == pytest.approx(2 / 3 * 0.45 + 1 / 3 * 0.39)
    bins = evaluation.calibration(logits=logits, labels=labels)
    assert bins.shape == (15, 3)
    assert bins[14].tolist() == pytest.approx([0.95, 0.5, 2])
    assert bins[9].tolist() == pytest.approx([0.61, 1, 1])
    assert bins.sum(0)[2] == 3


def test_summary_by_hand():
    # Every image has its logit 1 at one class and 0 elsewhere: -log p is log(e + 2) - 1 if correct, log(e + 2) if not.
    confidence, accuracy = 2.718281828 / 4.718281828, 4 / 6
    assert evaluation.summary(logits=LOGITS[None], labels=LABELS) == {
        "test_accuracy": round(accuracy, 4),
        "test_loss": round(1.551444714 - accuracy, 4),
        "macro_f1": round((1 / 2 + 4 / 5 + 2 / 3) / 3, 4),
        "expected_calibration_error": round(accuracy - confidence, 4),
    }


def test_summary_is_the_mean_over_seeds():
    perfect = np.eye(3, dtype=np.float32)[LABELS]
    summary = evaluation.summary(logits=np.stack([LOGITS, perfect]), labels=LABELS)
    assert summary["test_accuracy"] == round((4 / 6 + 1) / 2, 4)
    assert summary["macro_f1"] == round(((1 / 2 + 4 / 5 + 2 / 3) / 3 + 1) / 2, 4)


def test_metrics_match_pytorch_and_plain_counts():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(1_000, 10)).astype(np.float32), generator.integers(0, 10, 1_000)
    counts = np.zeros((10, 10), dtype=int)
    for label, predicted in zip(labels, logits.argmax(1), strict=True):
        counts[label, predicted] += 1
    assert evaluation.confusion_matrix(logits=logits, labels=labels).tolist() == counts.tolist()
    scores = evaluation.per_class(logits=logits, labels=labels)
    assert scores["precision"].tolist() == pytest.approx((counts.diagonal() / counts.sum(0)).tolist())
    assert scores["recall"].tolist() == pytest.approx((counts.diagonal() / counts.sum(1)).tolist())
    assert scores["f1"].tolist() == pytest.approx((2 * counts.diagonal() / (counts.sum(0) + counts.sum(1))).tolist())
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels))
    assert evaluation.cross_entropy(logits=logits, labels=labels) == pytest.approx(expected.item(), rel=1e-12)


def test_balanced_accuracy_by_hand():
    # Recall is 3/4 in class 0 and 1/1 in class 1; class 2 has no images and does not count.
    logits, labels = np.eye(3)[[0, 0, 0, 1, 1]], np.array([0, 0, 0, 0, 1])
    assert evaluation.balanced_accuracy(logits=logits, labels=labels) == pytest.approx((3 / 4 + 1) / 2)
    assert evaluation.summary(logits=logits[None], labels=labels)["balanced_accuracy"] == 0.875
    assert "balanced_accuracy" not in evaluation.summary(logits=LOGITS[None], labels=LABELS)  # two images per class


def test_majority_baseline_uses_training_labels():
    # Class 2 is the most frequent of the training images, class 0 of the test images.
    baseline = evaluation.majority_baseline(training_labels=np.array([0, 2, 2, 1]), labels=np.array([0, 0, 0, 2]))
    assert baseline == (2, 0.25)
    balanced = np.arange(100) % 10
    assert evaluation.majority_baseline(training_labels=balanced, labels=balanced) == (0, 0.1)


def test_pooled_seeds_by_hand():
    # The second seed predicts everything correctly: two of six mistakes become two of twelve.
    pooled = evaluation.pool_seeds(logits=np.stack([LOGITS, np.eye(3, dtype=np.float32)[LABELS]]), labels=LABELS)
    assert pooled["logits"].shape == (12, 3)
    assert evaluation.confusion_matrix(**pooled).tolist() == [[3, 1, 0], [0, 4, 0], [1, 0, 3]]


@pytest.mark.parametrize(
    ("patience", "stopped", "accuracy"), [(None, [False, False], [0.3, 0.5]), (2, [True, False], [0.1, 0.5])]
)
def test_epochs_by_seed_by_hand(patience, stopped, accuracy):
    # Seed 4 has its lowest validation loss two epochs before the end, seed 0 in its last epoch.
    losses = {"4": [1.0, 1.2, 1.1], "0": [1.0, 0.9]}
    rows = [
        {"seed": seed, "validation_loss": str(loss), "validation_accuracy": str(value)}
        for (seed, values), accuracies in zip(losses.items(), ([0.1, 0.2, 0.3], [0.4, 0.5]), strict=True)
        for loss, value in zip(values, accuracies, strict=True)
    ]
    trainings = epochs.by_seed(rows)
    assert [[row["seed"] for row in training] for training in trainings] == [["4"] * 3, ["0"] * 2]
    assert [epochs.has_stopped_early(training, patience) for training in trainings] == stopped
    assert [epochs.validation_accuracy(training, patience) for training in trainings] == accuracy


def test_epochs_without_validation_images():
    training = [{"seed": "0", "validation_loss": "", "validation_accuracy": ""}]
    assert epochs.validation_accuracy(training, None) == 0
