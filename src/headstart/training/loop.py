"""Optimizers and the training loop: pure computation; the caller prints and writes."""

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
from headstart.training.inference import Examples, predict
from headstart.training.pooling import use_deterministic


@dataclass(frozen=True)
class EpochMetrics:
    """What happened in one pass over the training images, or in several over few of them."""

    epoch: int  # from 1
    train_loss: float  # mean over the images of the loss at the step that used them, as is the accuracy
    train_accuracy: float
    validation_loss: float | None  # after the epoch; None without validation images
    validation_accuracy: float | None
    seconds: float  # of training, without validation; on a GPU with recording the step, in the first epoch of a run


def make_optimizer(configuration: Configuration, head: nn.Module, compute: Compute) -> torch.optim.Optimizer:
    """PyTorch's Adam or SGD for all parameters of ``head``, which is moved to the device that computes.

    SGD's weight decay is added to the gradient, as PyTorch has it.
    """
    head.to(compute.device)
    on_gpu = compute.device.type == "cuda"
    if on_gpu:
        head.to(memory_format=torch.channels_last)
    if configuration.optimizer == "Adam":
        # capturable: its count of steps is on the GPU too, for a CUDA graph to count on.
        return torch.optim.Adam(head.parameters(), lr=configuration.lr, fused=True, capturable=on_gpu)
    assert configuration.momentum is not None  # params.py has checked both
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
    """Train ``head`` in place; yield a record after each epoch.

    Only ``head``'s parameters are in the one optimizer, which lives through the training. Batch norm in ``head`` learns
    from each batch; what is not part of ``head`` cannot change.

    Args:
        head: from ``training.inputs`` to logits [N, classes].
        optimizer: of ``head``'s parameters, from ``make_optimizer``.
        training: used in an order that depends on ``seed`` and the epoch alone; the last batch may be smaller.
        validation: may be empty.
        epochs: the numbers of the epochs, from 1; a training that goes on where another stopped begins later.
        passes_per_epoch: over the training images in an epoch.
        name: of what is trained, for a complaint.
        on_batch: called after each step with its number of images.

    Raises:
        UserError: the loss or a weight is not finite, or ``head`` has batch norm and ``batch_size`` is 1.
    """
    if batch_size == 1 and any(isinstance(module, _BatchNorm) for module in head.modules()):
        raise UserError("batch_size in params.yaml must be at least 2, because batch norm cannot train on one image: "
                        "raise it (it is 1)")  # fmt: skip
    if compute.matmul_convolutions:
        use_matmul(head)
    if compute.device.type == "cuda":
        use_deterministic(head)
    step: Step = partial(_step, head, optimizer, compute)
    if compute.graphs:
        step = GraphedStep(step, batch_size, head, optimizer)
    if epochs.start == 1:
        torch.manual_seed(seed)  # for dropout, where a head has it
    for epoch in epochs:
        started = time.perf_counter()
        head.train()
        numbers = range((epoch - 1) * passes_per_epoch + 1, epoch * passes_per_epoch + 1)
        orders = [image_order(seed, number, len(training.labels)) for number in numbers]
        results = [_train_pass(step, training, order, batch_size, compute.device, on_batch) for order in orders]
        losses, hits = (torch.cat(found) for found in zip(*results, strict=True))
        means = losses.double().mean().item(), hits.double().mean().item()
        seconds = time.perf_counter() - started  # the device is done, or there would be no mean
        _require_finite(losses.view(passes_per_epoch, -1), head, epoch, batch_size, name)
        yield EpochMetrics(epoch, *means, *_validate(head, validation, compute), seconds)


def image_order(seed: int, number: int, n: int) -> torch.Tensor:
    """The order in which the pass with this number, from 1, uses the ``n`` images: int64 [n]."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + number))


def _step(
    head: nn.Module,
    optimizer: torch.optim.Optimizer,
    compute: Compute,
    inputs: torch.Tensor,
    labels: torch.Tensor,
) -> Results:
    """Train on one batch: its losses, float32 [batch], and whether each image was classified rightly, bool [batch]."""
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
    """One pass over the images: their losses, float32 [N], and whether they were classified rightly, bool [N].

    Nothing in it waits for a GPU.
    """
    losses = torch.empty(len(order), device=device)
    hits = torch.empty(len(order), device=device, dtype=torch.bool)
    labels = training.labels.to(device)[order.to(device)]
    start = 0
    for inputs in training.inputs.batches(order, batch_size):
        part = slice(start, start + len(inputs))
        losses[part], hits[part] = step(inputs, labels[part])
        start = part.stop
        on_batch(len(inputs))
    return losses, hits


def _validate(head: nn.Module, examples: Examples, compute: Compute) -> tuple[float | None, float | None]:
    """Loss and accuracy in eval mode, None without examples."""
    if len(examples.labels) == 0:
        return None, None
    logits = predict(head, examples.inputs, len(examples.labels), compute).cpu()
    accuracy = (logits.argmax(1) == examples.labels).double().mean()
    return F.cross_entropy(logits, examples.labels).item(), accuracy.item()


def _require_finite(losses: torch.Tensor, head: nn.Module, epoch: int, batch_size: int, name: str) -> None:
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        number, image = bad[0].tolist()
        batch = number * -(-losses.shape[1] // batch_size) + image // batch_size + 1
        raise UserError(f"{name}: the loss is not finite from epoch {epoch}, batch {batch} on: lower its lr")
    # What the last step has spoilt, no loss has shown yet.
    if not all(tensor.isfinite().all() for tensor in head.state_dict().values()):
        raise UserError(f"{name}: the weights are not finite after epoch {epoch}: lower its lr")
