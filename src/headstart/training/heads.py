"""Many linear heads at once, as batched matrix products: each gets the updates that it would get alone.

A step of one small head is mostly the cost of starting it, so that of thirty costs little more.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from headstart.console import UserError
from headstart.params import Experiment
from headstart.training import convergence
from headstart.training.compute import Compute
from headstart.training.loop import Epoch, image_order, make_optimizer


@dataclass(frozen=True)
class Head:
    """One of many heads, and what it is trained on: rows of features that all of them share."""

    layer: nn.Linear  # trained in place
    training: torch.Tensor  # int64 [n], the rows
    validation: torch.Tensor  # the same; may be empty
    seed: int
    passes: int  # over the training rows in an epoch
    name: str  # for a complaint


class _Stack(nn.Module):
    """The layers of heads as one: [heads, classes, features] and [heads, classes]."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """[heads, batch, features] to logits [heads, classes, batch]: in this order the product is twice as fast."""
        return torch.baddbmm(self.bias.unsqueeze(2), self.weight, rows.transpose(1, 2))


class _Run:
    """A head on its way: the batches of its epoch, and its epochs so far."""

    def __init__(self, head: Head, batch_size: int) -> None:
        self.head = head
        self.epochs: list[Epoch] = []
        self.best: tuple[torch.Tensor, torch.Tensor] | None = None
        self._batch_size = batch_size
        self.begin()

    def begin(self) -> None:
        """Shuffle for the next epoch."""
        self.losses, self.hits, self.seconds = 0.0, 0.0, 0.0
        self.batches = list(self._order())

    def _order(self) -> Iterator[torch.Tensor]:
        """The rows of each batch of the next epoch, last one first."""
        first = len(self.epochs) * self.head.passes
        numbers = range(first + self.head.passes, first, -1)
        for number in numbers:
            order = image_order(self.head.seed, number, len(self.head.training))
            yield from reversed(self.head.training[order].split(self._batch_size))


def fit(
    heads: Sequence[Head],
    features: torch.Tensor,
    labels: torch.Tensor,
    *,
    experiment: Experiment,
    batch_size: int,
    n_epochs: int,
    patience: int | None,
    compute: Compute,
    on_done: Callable[[int, list[Epoch]], object] = lambda at, epochs: None,
) -> list[list[Epoch]]:
    """Train all ``heads`` in place, each until it has converged or for ``n_epochs``; return the epochs of each.

    A head is then what it was after the epoch that is kept, as ``convergence`` has it.

    Args:
        features: float [N, features], on the device that computes.
        labels: int64 [N].
        on_done: called with a head's number and its epochs as soon as it is trained.

    Raises:
        UserError: a loss is not finite.
    """
    every = running = [_Run(head, batch_size) for head in heads]
    labels = labels.to(compute.device)
    weights, biases = ([getattr(head.layer, key).detach().to(compute.device) for head in heads]
                       for key in ("weight", "bias"))  # fmt: skip
    stack = _Stack(torch.stack(weights), torch.stack(biases))
    optimizer = make_optimizer(experiment, stack, compute)
    while running:
        started = time.perf_counter()
        rows, present = _batch([run.batches.pop() for run in running], batch_size, compute.device)
        inputs = features.index_select(0, rows.flatten()).view(*rows.shape, -1)
        losses, hits = _step(stack, optimizer, inputs, labels[rows], present)
        seconds = (time.perf_counter() - started) / len(running)
        for run, loss, hit in zip(running, losses.tolist(), hits.tolist(), strict=True):
            run.losses, run.hits, run.seconds = run.losses + loss, run.hits + hit, run.seconds + seconds
        for at in [at for at, run in enumerate(running) if not run.batches]:
            _end_epoch(running[at], stack.weight[at].detach(), stack.bias[at].detach(), features, labels, patience)
        going = [at for at, run in enumerate(running) if run.batches or not _is_done(run, n_epochs, patience)]
        for at in sorted(set(range(len(running))) - set(going)):
            _finish(running[at])
            on_done(every.index(running[at]), running[at].epochs)
        if len(going) < len(running):
            stack, optimizer = _without(stack, optimizer, going, experiment, compute)
            running = [running[at] for at in going]
        for run in running:
            if not run.batches:
                run.begin()
    return [run.epochs for run in every]


def _batch(rows: Sequence[torch.Tensor], batch_size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of each head, int64 [heads, batch_size], and which of it is there, where last batches are smaller."""
    sizes = torch.tensor([len(each) for each in rows])
    padded = torch.stack([F.pad(each, (0, batch_size - len(each))) for each in rows])
    return padded.to(device), (torch.arange(batch_size) < sizes[:, None]).to(device)


def _step(
    stack: _Stack, optimizer: torch.optim.Optimizer, inputs: torch.Tensor, labels: torch.Tensor, present: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Train each head on its batch: the sums of its losses and of what it classified rightly, float64 [heads]."""
    optimizer.zero_grad()
    logits = stack(inputs.to(stack.weight.dtype))
    losses = F.cross_entropy(logits, labels, reduction="none") * present
    (losses.sum(1) / present.sum(1)).sum().backward()  # the sum of means: no head's gradient has another's in it
    optimizer.step()
    hits = (logits.argmax(1) == labels) & present
    return losses.detach().double().sum(1), hits.double().sum(1)


def _end_epoch(
    run: _Run,
    weight: torch.Tensor,
    bias: torch.Tensor,
    features: torch.Tensor,
    labels: torch.Tensor,
    patience: int | None,
) -> None:
    head, number = run.head, len(run.epochs) + 1
    seen = head.passes * len(head.training)
    if not math.isfinite(run.losses) or not weight.isfinite().all():
        raise UserError(f"{head.name}: the loss is not finite in epoch {number}: lower its lr")
    tested: tuple[float | None, float | None] = (None, None)
    if len(head.validation):
        rows = head.validation.to(features.device)
        logits = F.linear(features[rows].to(weight.dtype), weight, bias)
        right = (logits.argmax(1) == labels[rows]).double().mean()
        tested = F.cross_entropy(logits, labels[rows]).item(), right.item()
    run.epochs.append(Epoch(number, run.losses / seen, run.hits / seen, *tested, run.seconds))
    if convergence.kept(_losses(run), patience) == number:
        run.best = weight.clone(), bias.clone()


def _losses(run: _Run) -> list[float]:
    return [epoch.validation_loss or 0.0 for epoch in run.epochs]


def _is_done(run: _Run, n_epochs: int, patience: int | None) -> bool:
    return len(run.epochs) == n_epochs or convergence.converged(_losses(run), patience)


def _finish(run: _Run) -> None:
    """Give its layer what is kept."""
    assert run.best is not None  # after the first epoch already
    with torch.no_grad():
        run.head.layer.weight.copy_(run.best[0])
        run.head.layer.bias.copy_(run.best[1])


def _without(
    stack: _Stack, optimizer: torch.optim.Optimizer, going: list[int], experiment: Experiment, compute: Compute
) -> tuple[_Stack, torch.optim.Optimizer]:
    """The heads ``going`` alone, with what the optimizer knows of them."""
    smaller = _Stack(stack.weight.detach()[going], stack.bias.detach()[going])
    other = make_optimizer(experiment, smaller, compute)
    for one, parameter in zip(stack.parameters(), smaller.parameters(), strict=True):
        for key, value in optimizer.state[one].items():
            of_heads = isinstance(value, torch.Tensor) and value.shape == one.shape  # the count of steps is all heads'
            other.state[parameter][key] = value[going] if of_heads else value
    return smaller, other
