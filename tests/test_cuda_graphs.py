import copy
import dataclasses

import pytest
import torch
from torch import nn

from headstart.params import Configuration
from headstart.training.cuda_graphs import GraphedStep, preserve_training_state
from headstart.training.inputs import CachedInputs, Examples
from headstart.training.optimizers import make_optimizer

from .conftest import trained

ADAM = Configuration(pretrained=True, finetuning=True, optimizer="Adam", lr=0.01)
SGD = Configuration(pretrained=True, finetuning=True, optimizer="SGD", lr=0.01, momentum=0.9, weight_decay=0.1)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 2))


def train(head: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        head(torch.randn(8, 3, 4, 4)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("configuration", [ADAM, SGD], ids=["adam", "sgd"])
@pytest.mark.parametrize("before", [0, 3], ids=["a new optimizer", "one with a state"])
def test_warming_up_leaves_no_trace(compute, configuration, before):
    states = []
    for warm_up in (0, 3):
        head = network()
        optimizer = make_optimizer(configuration, head, compute)
        train(head, optimizer, before)
        with preserve_training_state(head, optimizer):
            train(head, optimizer, warm_up)
        train(head, optimizer, 4)
        states.append(head.state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(states[1][name], tensor), name


def test_undone_keeps_every_tensor_where_it_is(compute):
    """A graph reads and writes addresses: a tensor that is replaced would be out of its reach."""
    head = network()
    optimizer = make_optimizer(ADAM, head, compute)
    before = copy.deepcopy(head.state_dict())
    places = [tensor.data_ptr() for tensor in head.state_dict().values()]
    with preserve_training_state(head, optimizer):
        train(head, optimizer, 1)
        moments = [tensor.data_ptr() for state in optimizer.state.values() for tensor in state.values()]
        assert not torch.equal(head[0].weight, before["0.weight"])
    assert places == [tensor.data_ptr() for tensor in head.state_dict().values()]
    assert moments == [tensor.data_ptr() for state in optimizer.state.values() for tensor in state.values()]
    assert torch.equal(head[0].weight, before["0.weight"])


@pytest.mark.parametrize("configuration", [ADAM, SGD], ids=["adam", "sgd"])
def test_training_is_the_same_with_and_without_graphs(compute, configuration):
    """On this device; tests/test_cuda.py compares them on a GPU."""
    generator = torch.Generator().manual_seed(1)
    maps, labels = torch.randn(20, 3, 4, 4, generator=generator), torch.randint(0, 2, (20,), generator=generator)
    states, records = [], []
    for graphs in (False, True):
        chosen = dataclasses.replace(compute, graphs=graphs)
        head, examples = network(), Examples(CachedInputs.from_tensor(maps, chosen), labels)
        epochs = trained(head, examples, examples, configuration=configuration, n_epochs=2, batch_size=8, seed=3,
                         compute=chosen)  # fmt: skip
        records.append([dataclasses.replace(epoch, seconds=0.0) for epoch in epochs])
        states.append(head.state_dict())
    assert records[0] == records[1]
    for name, tensor in states[0].items():
        assert torch.equal(states[1][name], tensor), name


def test_without_a_gpu_nothing_is_recorded(compute):
    sizes = []

    def step(inputs, labels):
        sizes.append(len(labels))
        return (inputs,)

    head = network()
    graphed = GraphedStep(step, 2, head, make_optimizer(SGD, head, compute))
    for size in (2, 2, 1):
        graphed(torch.zeros(size), torch.zeros(size))
    assert sizes == [2, 2, 1]
