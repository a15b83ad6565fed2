"""Optimizers of torch.optim, as a configuration names them."""

import inspect
from typing import Any

import torch
from torch import nn

from headstart.params import Configuration
from headstart.training.compute import Compute

GRAPHED = ("Adam", "AdamW", "SGD")  # optimizers that are used in CUDA graphs


def make_optimizer(configuration: Configuration, head: nn.Module, compute: Compute) -> torch.optim.Optimizer:
    """Return the optimizer of ``configuration`` for all parameters of ``head``, which is moved to the device.

    All options are PyTorch's. SGD, for example, adds its weight decay to the gradient.
    """
    head.to(compute.device)
    on_gpu = compute.device.type == "cuda"
    if on_gpu:
        head.to(memory_format=torch.channels_last)
    optimizer = getattr(torch.optim, configuration.optimizer)
    names = inspect.signature(optimizer).parameters
    lr: Any = configuration.lr
    implementation: dict[str, bool] = {}
    if "fused" in names:
        implementation["fused"] = True
    if "capturable" in names:
        # The step count is on the GPU too, so a CUDA graph can increase it.
        implementation["capturable"] = on_gpu and configuration.optimizer in GRAPHED
    if on_gpu and configuration.has_schedule and configuration.optimizer in GRAPHED:
        lr = torch.tensor(lr, device=compute.device)  # a CUDA graph reads it in each step
    return optimizer(head.parameters(), lr=lr, **configuration.optimizer_options, **implementation)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameters: in place if it is a tensor, which a CUDA graph may read."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
