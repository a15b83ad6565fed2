"""Optimizers of torch.optim, as a configuration names them."""

import inspect

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
    implementation: dict[str, bool] = {}
    if "fused" in names and (not on_gpu or configuration.optimizer in GRAPHED):  # Adagrad is fused on CPUs only
        implementation["fused"] = True
    if "capturable" in names:
        # The step count is on the GPU too, so a CUDA graph can increase it.
        implementation["capturable"] = on_gpu and configuration.optimizer in GRAPHED
    return optimizer(head.parameters(), lr=configuration.lr, **configuration.optimizer_options, **implementation)


def put_learning_rate_on_gpu(optimizer: torch.optim.Optimizer) -> None:
    """Store the learning rate as a tensor if the parameters are on a GPU: a CUDA graph would never see a new number."""
    for group in optimizer.param_groups:
        device = group["params"][0].device
        if device.type == "cuda" and type(optimizer).__name__ in GRAPHED:
            group["lr"] = torch.tensor(float(group["lr"]), device=device)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameters: in place if it is a tensor, which a CUDA graph may read."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
