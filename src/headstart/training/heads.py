"""Many linear heads at once, as batched matrix products: each gets the updates that it would get alone.

A step of one small head is mostly the cost of starting it, so that of thirty costs little more.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from headstart.console import UserError
from headstart.params import Experiment, Study
from headstart.training import convergence
from headstart.training.compute import Compute
from headstart.training.forward import Examples
from headstart.training.loop import Epoch, image_order, make_optimizer

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Head:
    """One of many, and the rows of their shared features that it is trained on."""

    layer: nn.Linear  # trained in place
    training: torch.Tensor  # int64 [n], the rows
    validation: torch.Tensor  # int64 [m], those of the features to validate with; may be empty
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

    def state_of(self, at: int) -> State:
        """The layer of one head."""
        return {"weight": self.weight[at].detach(), "bias": self.bias[at].detach()}


class _Run:
    """A head on its way: the batches of its epoch, and its epochs so far."""

    def __init__(self, number: int, head: Head, batch_size: int) -> None:
        self.number = number
        self.epochs: list[Epoch] = []
        self._head = head
        self._batch_size = batch_size
        self.begin()

    def begin(self) -> None:
        """Shuffle for the next epoch; its last batch comes first, for ``pop``."""
        self.seconds = 0.0
        head, first = self._head, len(self.epochs) * self._head.passes
        numbers = range(first + 1, first + head.passes + 1)
        orders = [image_order(head.seed, number, len(head.training)) for number in numbers]
        self.batches = [head.training[part] for order in orders for part in order.split(self._batch_size)][::-1]

    def end_epoch(self, sums: list[float], state: State, validation: Examples, patience: int | None) -> None:
        """Validate, and keep the weights if they are the best so far; ``sums``: of losses, and of what was right."""
        head, epoch = self._head, len(self.epochs) + 1
        loss, accuracy = (each / (head.passes * len(head.training)) for each in sums)
        if not math.isfinite(loss) or not all(tensor.isfinite().all() for tensor in state.values()):
            raise UserError(f"{head.name}: the loss is not finite in epoch {epoch}: lower its lr")
        tested: tuple[float | None, float | None] = (None, None)
        if len(head.validation):
            logits = F.linear(_features(validation, head.validation[None])[0], **state).cpu()
            labels = validation.labels[head.validation]
            right = (logits.argmax(1) == labels).double().mean()
            tested = F.cross_entropy(logits, labels).item(), right.item()
        self.epochs.append(Epoch(epoch, loss, accuracy, *tested, self.seconds))
        if convergence.kept(self._losses, patience) == epoch:
            self._best = {key: tensor.clone() for key, tensor in state.items()}

    def is_done(self, study: Study) -> bool:
        return len(self.epochs) == study.n_epochs or convergence.stops_early(self._losses, study.patience)

    def keep(self) -> None:
        """Give the layer what is kept."""
        self._head.layer.load_state_dict(self._best)

    @property
    def _losses(self) -> list[float]:
        return [epoch.validation_loss or 0.0 for epoch in self.epochs]


def fit(
    heads: Sequence[Head],
    training: Examples,
    validation: Examples,
    *,
    experiment: Experiment,
    study: Study,
    compute: Compute,
) -> Iterator[tuple[int, list[Epoch]]]:
    """Train all ``heads`` in place; yield the number of each and its epochs, as soon as it is trained.

    A head is then what it was after the epoch that is kept.

    Args:
        training: features, of which every head has some.
        validation: the same.

    Raises:
        UserError: a loss is not finite.
    """
    running = [_Run(at, head, study.batch_size) for at, head in enumerate(heads)]
    if not running:
        return
    weights, biases = ([getattr(head.layer, key).detach().to(compute.device) for head in heads]
                       for key in ("weight", "bias"))  # fmt: skip
    stack = _Stack(torch.stack(weights), torch.stack(biases))
    optimizer = make_optimizer(experiment, stack, compute)
    sums = torch.zeros(2, len(running), dtype=torch.float64, device=compute.device)  # of losses and hits of an epoch
    while running:
        started = time.perf_counter()
        rows, present = _batch([run.batches.pop() for run in running], study.batch_size)
        labels = training.labels[rows].to(compute.device)
        sums += _step(stack, optimizer, _features(training, rows), labels, present.to(compute.device))
        seconds = (time.perf_counter() - started) / len(running)
        going = []
        for at, run in enumerate(running):
            run.seconds += seconds
            if not run.batches:
                run.end_epoch(sums[:, at].tolist(), stack.state_of(at), validation, study.patience)
                sums[:, at] = 0
            if run.batches or not run.is_done(study):
                going.append(at)
            else:
                run.keep()
                yield run.number, run.epochs
        if 0 < len(going) < len(running):
            stack, optimizer = _without(stack, optimizer, going, experiment, compute)
            sums = sums[:, going]
        running = [running[at] for at in going]
        for run in running:
            if not run.batches:
                run.begin()


def _features(examples: Examples, rows: torch.Tensor) -> torch.Tensor:
    """Of the rows [heads, batch]: [heads, batch, features], on the device, in float32."""
    [found] = examples.inputs.batches(rows.flatten(), rows.numel())
    return found.view(*rows.shape, -1).to(torch.float32)


def _batch(rows: Sequence[torch.Tensor], batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of each head, int64 [heads, batch_size], and which of it is there, where last batches are smaller."""
    sizes = torch.tensor([len(each) for each in rows])
    padded = torch.stack([F.pad(each, (0, batch_size - len(each))) for each in rows])
    return padded, torch.arange(batch_size) < sizes[:, None]


def _step(
    stack: _Stack, optimizer: torch.optim.Optimizer, inputs: torch.Tensor, labels: torch.Tensor, present: torch.Tensor
) -> torch.Tensor:
    """Train each head on its batch: the sums of its losses, and of what it classified rightly, float64 [2, heads]."""
    optimizer.zero_grad()
    logits = stack(inputs)
    rows = logits.transpose(1, 2).flatten(0, 1)  # as two dimensions, of which alone CUDA's loss is deterministic
    losses = F.cross_entropy(rows, labels.flatten(), reduction="none").view_as(labels) * present
    (losses.sum(1) / present.sum(1)).sum().backward()  # the sum of means: no head's gradient has another's in it
    optimizer.step()
    hits = (logits.argmax(1) == labels) & present
    return torch.stack([losses.detach().double().sum(1), hits.double().sum(1)])


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
