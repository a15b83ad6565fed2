"""The training loop. It does no I/O: the caller prints and writes."""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from headstart.console import UserError
from headstart.training.compute import Compute
from headstart.training.convolutions import use_matmul
from headstart.training.criterion import Criterion
from headstart.training.cuda_graphs import GraphedStep, Results, Step
from headstart.training.inputs import Examples, predict
from headstart.training.optimizers import GRAPHED, put_learning_rate_on_gpu, set_learning_rate
from headstart.training.pooling import use_deterministic

CROSS_ENTROPY = Criterion()


@dataclass(frozen=True)
class EpochMetrics:
    """The metrics of one epoch: one pass over the training images, or several passes over a small subset."""

    epoch: int  # from 1
    train_loss: float  # like the accuracy, a mean over images, each at the step that used it
    train_accuracy: float
    validation_loss: float | None  # after the epoch; None without validation images
    validation_accuracy: float | None
    seconds: float  # of training, without validation; on a GPU, the first epoch includes the capture of the CUDA graph


def fit(
    head: nn.Module,
    optimizer: torch.optim.Optimizer,
    training: Examples,
    validation: Examples,
    *,
    epochs: range,
    batch_size: int,
    seed: int,
    compute: Compute,
    passes_per_epoch: int = 1,
    criterion: Criterion = CROSS_ENTROPY,
    learning_rate: Callable[[int], float] | None = None,
    name: str = "the training",
    on_batch: Callable[[int], object] = lambda images: None,
) -> Iterator[EpochMetrics]:
    """Train ``head`` in place; yield the metrics of each epoch. `plain.train` is the specification.

    One optimizer with only the parameters of ``head`` is used throughout the training. Batch norm in ``head`` updates
    its statistics with each batch. Nothing outside of ``head`` can change.

    Args:
        head: from ``training.inputs`` to logits [N, classes].
        optimizer: of ``head``'s parameters, from ``make_optimizer``.
        training: its order depends only on ``seed`` and the epoch; the last batch may be smaller.
        validation: may be empty.
        epochs: the numbers of the epochs, from 1; a resumed training starts at a later number.
        passes_per_epoch: passes over the training images in one epoch.
        criterion: the training loss. The validation loss is cross-entropy, without smoothing and class weights.
        learning_rate: from the optimizer step, from 0, to its learning rate; by default it stays as it is.
        name: of the training, for error messages.
        on_batch: called after each step with the number of images.

    Raises:
        UserError: the loss or a weight is not finite, or ``head`` has batch norm and ``batch_size`` is 1.
    """
    if batch_size == 1 and any(isinstance(module, _BatchNorm) for module in head.modules()):
        raise UserError("batch_size is 1, and batch norm cannot train on one image. Set it to 2 or more.")
    if compute.matmul_convolutions:
        use_matmul(head)
    if compute.device.type == "cuda":
        use_deterministic(head)
    step: Step = partial(_step, head, optimizer, compute, criterion)
    if compute.graphs and type(optimizer).__name__ in GRAPHED:
        step = GraphedStep(step, batch_size, head, optimizer)
    n_images = len(training.labels)
    if learning_rate is not None:
        first_step = (epochs.start - 1) * passes_per_epoch * -(-n_images // batch_size)
        step = _with_learning_rates(step, optimizer, map(learning_rate, itertools.count(first_step)))
    if epochs.start == 1:
        torch.manual_seed(seed)  # for dropout
    for epoch in epochs:
        started = time.perf_counter()
        head.train()
        numbers = range((epoch - 1) * passes_per_epoch + 1, epoch * passes_per_epoch + 1)
        results = []
        for number in numbers:
            order, examples = image_order(seed, number, n_images), training.for_pass(seed, number)
            results.append(_train_pass(step, examples, order, batch_size, compute.device, on_batch))
        losses, correct = (torch.cat(tensors) for tensors in zip(*results, strict=True))
        means = losses.double().mean().item(), correct.double().mean().item()
        seconds = time.perf_counter() - started  # the mean has waited for the device
        _require_finite(losses.view(passes_per_epoch, -1), head, epoch, batch_size, name)
        yield EpochMetrics(epoch, *means, *_validate(head, validation, compute), seconds)


def image_order(seed: int, number: int, n: int) -> torch.Tensor:
    """Return the order of the ``n`` images in a pass, whose ``number`` starts at 1: int64 [n]."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + number))


def _step(
    head: nn.Module,
    optimizer: torch.optim.Optimizer,
    compute: Compute,
    criterion: Criterion,
    inputs: torch.Tensor,
    labels: torch.Tensor,
) -> Results:
    """Train on one batch; return the losses, float32 [batch], and which predictions are correct, bool [batch]."""
    optimizer.zero_grad()
    with compute.autocast():
        logits = head(inputs)
        losses = criterion.losses(logits, labels)
    criterion.mean(losses, labels).backward()
    optimizer.step()
    return losses.detach(), logits.argmax(1) == labels


def _with_learning_rates(step: Step, optimizer: torch.optim.Optimizer, learning_rates: Iterator[float]) -> Step:
    """Return ``step`` with the next learning rate set before each call."""
    put_learning_rate_on_gpu(optimizer)

    def scheduled(inputs: torch.Tensor, labels: torch.Tensor) -> Results:
        set_learning_rate(optimizer, next(learning_rates))
        return step(inputs, labels)

    return scheduled


def _train_pass(
    step: Step,
    training: Examples,
    order: torch.Tensor,
    batch_size: int,
    device: torch.device,
    on_batch: Callable[[int], object],
) -> Results:
    """Train on all images once; return the losses, float32 [N], and which predictions are correct, bool [N].

    It never waits for a GPU.
    """
    losses = torch.empty(len(order), device=device)
    correct = torch.empty(len(order), device=device, dtype=torch.bool)
    labels = training.labels.to(device)[order.to(device)]
    start = 0
    for inputs in training.inputs.batches(order, batch_size):
        batch = slice(start, start + len(inputs))
        losses[batch], correct[batch] = step(inputs, labels[batch])
        start = batch.stop
        on_batch(len(inputs))
    return losses, correct


def _validate(head: nn.Module, examples: Examples, compute: Compute) -> tuple[float | None, float | None]:
    """Return loss and accuracy in eval mode; None without examples."""
    if len(examples.labels) == 0:
        return None, None
    logits = predict(head, examples.inputs, len(examples.labels), compute).cpu()
    accuracy = (logits.argmax(1) == examples.labels).double().mean()
    return F.cross_entropy(logits, examples.labels).item(), accuracy.item()


def _require_finite(losses: torch.Tensor, head: nn.Module, epoch: int, batch_size: int, name: str) -> None:
    not_finite = (~losses.isfinite()).nonzero()
    if len(not_finite):
        pass_index, image = not_finite[0].tolist()
        batch = pass_index * -(-losses.shape[1] // batch_size) + image // batch_size + 1
        raise UserError(f"{name}: the loss is not finite from epoch {epoch}, batch {batch} on. Lower lr.")
    # The last step's update is not reflected in any loss yet.
    if not all(tensor.isfinite().all() for tensor in head.state_dict().values()):
        raise UserError(f"{name}: the weights are not finite after epoch {epoch}. Lower lr.")
