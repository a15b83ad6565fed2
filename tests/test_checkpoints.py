import copy
import dataclasses
from collections.abc import Iterator
from functools import partial
from itertools import product

import pytest
import torch
from torch import nn

from headstart.data.preprocessing import Preprocess
from headstart.network import models, splitting
from headstart.params import Configuration
from headstart.training import compute as computing
from headstart.training.checkpoints import Checkpoint, fingerprint
from headstart.training.inputs import CachedInputs, Examples, cache_or_recompute
from headstart.training.loop import EpochMetrics, fit
from headstart.training.optimizers import make_optimizer
from headstart.training.schedules import learning_rate

from .conftest import usable_optimizers

ADAM = Configuration(pretrained=True, finetuning=True, optimizer="Adam", lr=0.01)
SGD = Configuration(pretrained=True, finetuning=True, optimizer="SGD", lr=0.01, momentum=0.9, weight_decay=0.1)
EPOCHS = 4
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def network() -> nn.Sequential:
    """All that has a state: weights, batch-norm statistics, and dropout's random numbers."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Dropout(0.5), nn.Flatten(), nn.Linear(24, 10)]
    return nn.Sequential(*layers)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=CUDA)])
def compute(request) -> computing.Compute:
    return computing.configure(request.param)


@pytest.fixture
def examples(compute) -> Examples:
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(50, 2, 2, 2, generator=generator)
    return Examples(CachedInputs.from_tensor(maps, compute), torch.randint(0, 10, (50,), generator=generator))


def run(head, optimizer, examples, compute, configuration, done: int) -> Iterator[EpochMetrics]:
    """Train with a cosine schedule, which is 16 steps long: 4 epochs of 4 batches."""
    rates = partial(learning_rate, dataclasses.replace(configuration, schedule="cosine"), n_steps=16)
    for epoch in fit(head, optimizer, examples, examples, epochs=range(done + 1, EPOCHS + 1), batch_size=16, seed=3,
                     compute=compute, learning_rate=rates):  # fmt: skip
        yield dataclasses.replace(epoch, seconds=0.0)


OTHERS = [dataclasses.replace(ADAM, optimizer=name) for name in usable_optimizers() if name not in ("Adam", "SGD")]


@pytest.mark.parametrize(
    ("configuration", "killed_after"),
    [*product((ADAM, SGD), (1, 3, 4)), *((configuration, 2) for configuration in OTHERS)],
    ids=lambda value: value.optimizer if isinstance(value, Configuration) else str(value),
)
def test_an_interrupted_training_ends_as_an_uninterrupted_one(tmp_path, examples, compute, configuration, killed_after):
    head = network()
    optimizer = make_optimizer(configuration, head, compute)
    checkpoint = Checkpoint(tmp_path / "folder" / "x.safetensors", "fingerprint")
    expected = []
    for epoch in run(head, optimizer, examples, compute, configuration, 0):
        expected.append(epoch)
        if epoch.epoch == killed_after:
            checkpoint.save(head, optimizer, expected, {})

    other = network()
    torch.manual_seed(99)  # another process begins with other random numbers
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    optimizer = make_optimizer(configuration, other, compute)
    done, _ = checkpoint.restore(other, optimizer)
    assert done == expected[:killed_after]
    assert [*done, *run(other, optimizer, examples, compute, configuration, len(done))] == expected
    for name, tensor in head.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
@pytest.mark.parametrize("configuration", [ADAM, SGD], ids=["adam", "sgd"])
def test_a_resumed_head_whose_memory_is_channels_last(tmp_path, training_set, configuration, device):
    """Fused optimizers walk through memory: a state in another layout than its parameter gives other weights."""
    compute = computing.configure(device)
    images, labels = (tensor[:32] for tensor in training_set)
    checkpoint = Checkpoint(tmp_path / "x.safetensors", "fingerprint")
    states = []
    for interrupted in (False, True):
        torch.manual_seed(0)
        backbone, head = splitting.split_backbone_head(models.build("resnet18", 10), "layer4")
        head.to(memory_format=torch.channels_last)
        inputs = cache_or_recompute(
            images, backbone, compute=compute, prepare=Preprocess(64, (0.5,) * 3, (0.5,) * 3), reuse=True
        )
        of = Examples(inputs, labels)
        for epoch in (1, 2):
            if epoch == 1 or interrupted:
                optimizer = make_optimizer(configuration, head, compute)
            done = checkpoint.restore(head, optimizer)[0] if epoch == 2 and interrupted else []
            assert len(done) == (epoch == 2 and interrupted)
            [record] = fit(head, optimizer, of, of, epochs=range(epoch, epoch + 1), batch_size=16, seed=3,
                           compute=compute)  # fmt: skip
            if epoch == 1:
                checkpoint.save(head, optimizer, [record], {})
        states.append(head.state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(states[1][name], tensor), name


@pytest.mark.parametrize("what", ["missing", "damaged", "of another training"])
def test_what_does_not_fit_changes_nothing(tmp_path, compute, what):
    path = tmp_path / "x.safetensors"
    head = network()
    optimizer = make_optimizer(ADAM, head, compute)
    if what == "damaged":
        path.write_bytes(b"half a checkpoint")
    if what == "of another training":
        Checkpoint(path, "other").save(head, optimizer, [EpochMetrics(1, 2.0, 0.5, None, None, 1.0)], {})
        nn.init.zeros_(head[0].weight)
    before = copy.deepcopy(head.state_dict())
    assert Checkpoint(path, "fingerprint").restore(head, optimizer) == ([], {})
    assert not optimizer.state
    assert all(torch.equal(head.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_fingerprint_tells_settings_and_files_apart(tmp_path):
    file = tmp_path / "start"
    file.write_bytes(b"1")
    first = fingerprint({"lr": 0.1}, [file])
    assert fingerprint({"lr": 0.1}, [file]) == first
    assert fingerprint({"lr": 0.2}, [file]) != first
    file.write_bytes(b"2")
    assert fingerprint({"lr": 0.1}, [file]) != first
