"""Optimizers and the training loop. They do no I/O: the caller prints and writes."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from headstart.console import UserError
from headstart.params import Configuration
from headstart.training.compute import Compute
from headstart.training.convolutions import use_matmul
from headstart.training.cuda_graphs import GraphedStep, Results, Step
from headstart.training.inputs import Examples, predict
from headstart.training.pooling import use_deterministic


@dataclass(frozen=True)
class EpochMetrics:
    """The metrics of one epoch: one pass over the training images, or several passes over a small subset."""

    epoch: int  # from 1
    train_loss: float  # like the accuracy, a mean over images, each at the step that used it
    train_accuracy: float
    validation_loss: float | None  # after the epoch; None without validation images
    validation_accuracy: float | None
    seconds: float  # of training, without validation; on a GPU, the first epoch includes the capture of the CUDA graph


def make_optimizer(configuration: Configuration, head: nn.Module, compute: Compute) -> torch.optim.Optimizer:
    """Return PyTorch's Adam or SGD for all parameters of ``head``, which is moved to the device.

    As in PyTorch, SGD's weight decay is added to the gradient.
    """
    head.to(compute.device)
    on_gpu = compute.device.type == "cuda"
    if on_gpu:
        head.to(memory_format=torch.channels_last)
    if configuration.optimizer == "Adam":
        # capturable: the step count is on the GPU too, so a CUDA graph can increase it.
        return torch.optim.Adam(head.parameters(), lr=configuration.lr, fused=True, capturable=on_gpu)
    assert configuration.momentum is not None  # checked in params.py
    assert configuration.weight_decay is not None
    return torch.optim.SGD(head.parameters(), lr=configuration.lr, momentum=configuration.momentum,
                           weight_decay=configuration.weight_decay, fused=True)  # fmt: skip


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
    step: Step = partial(_step, head, optimizer, compute)
    if compute.graphs:
        step = GraphedStep(step, batch_size, head, optimizer)
    if epochs.start == 1:
        torch.manual_seed(seed)  # for dropout
    for epoch in epochs:
        started = time.perf_counter()
        head.train()
        numbers = range((epoch - 1) * passes_per_epoch + 1, epoch * passes_per_epoch + 1)
        orders = [image_order(seed, number, len(training.labels)) for number in numbers]
        results = [_train_pass(step, training, order, batch_size, compute.device, on_batch) for order in orders]
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
    inputs: torch.Tensor,
    labels: torch.Tensor,
) -> Results:
    """Train on one batch; return the losses, float32 [batch], and which predictions are correct, bool [batch]."""
    optimizer.zero_grad()
    with compute.autocast():
        logits = head(inputs)
        losses = F.cross_entropy(logits, labels, reduction="none")
    losses.mean().backward()
    optimizer.step()
    return losses.detach(), logits.argmax(1) == labels


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
