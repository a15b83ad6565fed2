"""Optimizers and the training loop: pure computation; the caller prints and writes."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from headstart.compute import Compute
from headstart.console import UserError
from headstart.convolutions import use_matmul
from headstart.datasets import Examples
from headstart.params import Experiment


@dataclass(frozen=True)
class Epoch:
    """What happened in one pass over the training images."""

    epoch: int  # from 1
    train_loss: float  # mean over the images of the loss at the step that used them, as is the accuracy
    train_accuracy: float
    validation_loss: float | None  # after the epoch; None without validation images
    validation_accuracy: float | None
    seconds: float  # of training, without validation


def make_optimizer(experiment: Experiment, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    """PyTorch's Adam or SGD for ``parameters``; SGD's weight decay is added to the gradient, as PyTorch has it."""
    if experiment.optimizer == "Adam":
        return torch.optim.Adam(parameters, lr=experiment.lr, fused=True)
    assert experiment.momentum is not None  # params.py has checked both
    assert experiment.weight_decay is not None
    return torch.optim.SGD(
        parameters, lr=experiment.lr, momentum=experiment.momentum, weight_decay=experiment.weight_decay, fused=True
    )


def fit(
    head: nn.Module,
    training: Examples,
    validation: Examples,
    *,
    experiment: Experiment,
    n_epochs: int,
    batch_size: int,
    seed: int,
    compute: Compute,
    on_batch: Callable[[int], object] = lambda images: None,
) -> Iterator[Epoch]:
    """Train all parameters of ``head`` in place; yield a record after each epoch.

    Only ``head``'s parameters reach the one optimizer, which lives through the training. Batch norm in ``head``
    learns from each batch; what is not part of ``head`` cannot change.

    Args:
        head: from ``training.inputs`` to logits [N, classes]; moved to the device that computes.
        training: used in an order that depends on ``seed`` and the epoch alone; the last batch may be smaller.
        validation: may be empty.
        on_batch: called after each step with its number of images.

    Raises:
        UserError: the loss is not finite.
    """
    head.to(compute.device)
    if compute.matmul_convolutions:
        use_matmul(head)
    training, validation = (
        Examples(*(tensor.to(compute.device) for tensor in examples)) for examples in (training, validation)
    )
    optimizer = make_optimizer(experiment, head.parameters())
    torch.manual_seed(seed)  # for dropout, where a head has it
    for epoch in range(1, n_epochs + 1):
        started = time.perf_counter()
        losses, hits = _train_epoch(head, training, optimizer, image_order(seed, epoch, len(training.labels)),
                                    batch_size, compute, on_batch)  # fmt: skip
        seconds = time.perf_counter() - started
        _require_finite(losses, epoch, batch_size)
        tested = _test(head, validation, compute)
        yield Epoch(epoch, losses.double().mean().item(), hits.double().mean().item(), *tested, seconds)


def image_order(seed: int, epoch: int, n: int) -> torch.Tensor:
    """The order in which epoch ``epoch`` uses its ``n`` images: int64 [n]."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def _train_epoch(
    head: nn.Module,
    training: Examples,
    optimizer: torch.optim.Optimizer,
    order: torch.Tensor,
    batch_size: int,
    compute: Compute,
    on_batch: Callable[[int], object],
) -> tuple[torch.Tensor, torch.Tensor]:
    """One pass over the images: their losses, float32 [N], and whether they were classified rightly, bool [N]."""
    head.train()
    losses = torch.empty(len(order), device=compute.device)
    hits = torch.empty(len(order), device=compute.device, dtype=torch.bool)
    start = 0
    for batch in order.to(compute.device).split(batch_size):
        inputs, labels = _channels_last(training.inputs[batch]), training.labels[batch]
        with compute.autocast():
            logits = head(inputs)
        full = torch.promote_types(logits.dtype, torch.float32)  # a loss in bfloat16 would be too coarse
        loss = F.cross_entropy(logits.to(full), labels, reduction="none")
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        losses[start : start + len(batch)] = loss.detach()
        hits[start : start + len(batch)] = logits.argmax(1) == labels
        start += len(batch)
        on_batch(len(batch))
    return losses, hits


@torch.no_grad()
def _test(head: nn.Module, examples: Examples, compute: Compute) -> tuple[float | None, float | None]:
    """Loss and accuracy in eval mode, None without examples."""
    if len(examples.labels) == 0:
        return None, None
    head.eval()
    with compute.autocast():
        logits = torch.cat([head(_channels_last(chunk)).float() for chunk in examples.inputs.split(compute.chunk)])
    accuracy = (logits.argmax(1) == examples.labels).double().mean()
    return F.cross_entropy(logits, examples.labels).item(), accuracy.item()


def _channels_last(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs


def _require_finite(losses: torch.Tensor, epoch: int, batch_size: int) -> None:
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        batch = int(bad[0]) // batch_size + 1
        raise UserError(f"the loss is not finite from epoch {epoch}, batch {batch} on: lower this configuration's lr")
