import pytest
import torch
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from headstart.results import evaluation

# Six images of three classes, worked out by hand.
# actual 0 0 1 1 2 2, predicted 0 1 1 1 0 2: rows actual, columns predicted [[1,1,0],[0,2,0],[1,0,1]].
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
PREDICTED = torch.tensor([0, 1, 1, 1, 0, 2])
LOGITS = torch.nn.functional.one_hot(PREDICTED, 3).float()


def test_confusion_by_hand():
    confusion = evaluation.confusion_matrix(logits=LOGITS, labels=LABELS)
    assert confusion.tolist() == [[1, 1, 0], [0, 2, 0], [1, 0, 1]]


def test_precision_recall_f1_by_hand():
    scores = evaluation.per_class(torch.tensor([[1, 1, 0], [0, 2, 0], [1, 0, 1]]))
    assert scores["precision"].tolist() == pytest.approx([1 / 2, 2 / 3, 1])
    assert scores["recall"].tolist() == pytest.approx([1 / 2, 1, 1 / 2])
    assert scores["f1"].tolist() == pytest.approx([1 / 2, 4 / 5, 2 / 3])


def test_a_class_that_is_never_there_scores_zero():
    scores = evaluation.per_class(torch.tensor([[3, 0], [0, 0]]))
    assert {name: values.tolist() for name, values in scores.items()} == {
        "precision": [1.0, 0.0],
        "recall": [1.0, 0.0],
        "f1": [1.0, 0.0],
    }


def test_calibration_by_hand():
    # Confidences 0.95, 0.95 (bin 15, one right of two) and 0.61 (bin 10, right): 2/3·|0.5 - 0.95| + 1/3·|1 - 0.61|.
    probabilities = torch.tensor([[0.95, 0.05], [0.95, 0.05], [0.39, 0.61]], dtype=torch.float64)
    error = evaluation.expected_calibration_error(logits=probabilities.log(), labels=torch.tensor([0, 1, 1]))
    assert error == pytest.approx(2 / 3 * 0.45 + 1 / 3 * 0.39)


def test_summary_by_hand():
    # Every image has its logit 1 at one class and 0 elsewhere: -log p is log(e + 2) - 1 where right, log(e + 2) else.
    confidence, right = 2.718281828 / 4.718281828, 4 / 6
    assert evaluation.summary(logits=LOGITS.unsqueeze(0), labels=LABELS) == {
        "test_accuracy": round(right, 4),
        "test_loss": round(1.551444714 - right, 4),
        "macro_f1": round((1 / 2 + 4 / 5 + 2 / 3) / 3, 4),
        "expected_calibration_error": round(right - confidence, 4),
    }


def test_a_summary_of_several_seeds_is_the_mean_of_theirs():
    perfect = torch.nn.functional.one_hot(LABELS, 3).float()
    summary = evaluation.summary(logits=torch.stack([LOGITS, perfect]), labels=LABELS)
    assert summary["test_accuracy"] == round((4 / 6 + 1) / 2, 4)
    assert summary["macro_f1"] == round(((1 / 2 + 4 / 5 + 2 / 3) / 3 + 1) / 2, 4)


def test_against_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1_000, 10, generator=generator)
    labels = torch.randint(0, 10, (1_000,), generator=generator)
    confusion = evaluation.confusion_matrix(logits=logits, labels=labels)
    assert confusion.tolist() == confusion_matrix(labels, logits.argmax(1)).tolist()
    expected = precision_recall_fscore_support(labels, logits.argmax(1))
    for name, theirs in zip(("precision", "recall", "f1"), expected, strict=False):
        assert evaluation.per_class(confusion)[name].tolist() == pytest.approx(theirs.tolist())
