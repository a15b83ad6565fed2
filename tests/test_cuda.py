"""What only a GPU can show: skipped where there is none."""

import dataclasses

import pytest
import torch

from headstart.data.images import Preprocess
from headstart.network import models
from headstart.params import Experiment
from headstart.training import compute as computing
from headstart.training.compute import Compute
from headstart.training.forward import Examples, Kept, activations, outputs, predict
from headstart.training.graphs import GraphedStep

from .conftest import trained

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

ADAM = Experiment(pretrained=True, finetuning=True, optimizer="Adam", lr=0.001)
SGD = Experiment(pretrained=True, finetuning=True, optimizer="SGD", lr=0.001, momentum=0.9, weight_decay=0.1)
PREPROCESS = Preprocess(64, (0.5,) * 3, (0.5,) * 3)
BATCH = 32


@pytest.fixture(scope="module")
def gpu() -> Compute:
    return computing.choose("cuda")


def train(images, labels, compute, experiment, *, network="resnet18", layer="layer4", place="device", epochs=2):
    """Train on ``images`` kept at ``place``; return the network's state and the records of the epochs."""
    torch.manual_seed(0)
    model = models.build(network, 10)
    trunk, head = models.cut(model, layer)
    inputs = activations(images, trunk, compute=compute, prepare=PREPROCESS, keep=place != "recompute")
    if place == "host":
        inputs = dataclasses.replace(inputs, rows=inputs.rows.cpu())
    assert inputs.place == place
    examples = Examples(inputs, labels)
    records = trained(
        head, examples, examples, experiment=experiment, n_epochs=epochs, batch_size=BATCH, seed=3, compute=compute
    )
    return model.state_dict(), [dataclasses.replace(record, seconds=0.0) for record in records]


@pytest.mark.parametrize("experiment", [ADAM, SGD], ids=["adam", "sgd"])
def test_replaying_is_training_step_by_step(training_set, gpu, experiment, monkeypatch):
    images, labels = (tensor[:200] for tensor in training_set)  # six full batches and one of eight
    graphed, records = train(images, labels, gpu, experiment)
    monkeypatch.setattr(GraphedStep, "__call__", lambda self, inputs, labels: self._step(inputs, labels))
    eager, expected = train(images, labels, gpu, experiment)
    for record, other in zip(records, expected, strict=True):
        assert record.train_loss == pytest.approx(other.train_loss, rel=1e-3)
        assert record.validation_loss == pytest.approx(other.validation_loss, rel=1e-2)
    for name, tensor in eager.items():
        torch.testing.assert_close(graphed[name], tensor, rtol=1e-2, atol=1e-3, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("experiment", [ADAM, SGD], ids=["adam", "sgd"])
def test_two_runs_and_all_places_give_the_same_numbers(training_set, gpu, experiment):
    images, labels = (tensor[:600] for tensor in training_set)
    first, records = train(images, labels, gpu, experiment)
    for place in ("device", "host", "recompute"):
        state, again = train(images, labels, gpu, experiment, place=place)
        assert again == records, place
        assert all(torch.equal(state[name], tensor) for name, tensor in first.items()), place


def test_float32_agrees_with_the_cpu(training_set, gpu, compute):
    images, labels = (tensor[:200] for tensor in training_set)
    exact = dataclasses.replace(gpu, dtype=torch.float32)
    for experiment in (ADAM, SGD):
        _, [record] = train(images, labels, exact, experiment, epochs=1)
        _, [expected] = train(images, labels, compute, experiment, epochs=1)
        assert record.train_loss == pytest.approx(expected.train_loss, rel=1e-3)


def test_bfloat16_is_within_two_percent(test_set, gpu, compute):
    torch.manual_seed(0)
    network = models.build("resnet18", 10)
    [exact] = outputs(test_set[0][:256], (network,), compute=compute, prepare=PREPROCESS)
    [coarse] = outputs(test_set[0][:256], (network,), compute=gpu, prepare=PREPROCESS)
    assert (coarse - exact).std() <= 0.02 * exact.std()


def test_nothing_in_an_epoch_waits_for_the_gpu(training_set, gpu):
    images, labels = (tensor[:256] for tensor in training_set)
    torch.manual_seed(0)
    trunk, head = models.cut(models.build("resnet18", 10), "layer4")
    inputs = activations(images, trunk, compute=gpu, prepare=PREPROCESS, keep=True)
    nothing = Examples(Kept.of(torch.empty(0, 1), gpu), labels[:0])
    seen = []

    def on_batch(images: int) -> None:  # the first batch records; from the second on a wait is an error
        seen.append(images)
        torch.cuda.set_sync_debug_mode("error" if len(seen) < len(labels) // BATCH else "default")

    trained(head, Examples(inputs, labels), nothing, experiment=ADAM, n_epochs=1, batch_size=BATCH, seed=0,
            compute=gpu, on_batch=on_batch)  # fmt: skip
    assert seen == [BATCH] * 8
    assert predict(head, inputs, 5, gpu).shape == (5, 10)
