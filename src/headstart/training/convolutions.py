"""Convolutions on small maps as matrix products: on a CPU several times faster than PyTorch's, especially backward.

At the end of a network a map is 4×4 or 2×2 pixels, and a 3×3 or 5×5 kernel mostly covers padding. One matrix
from all input to all output positions, without the zeros, is the same linear map.
"""

import sys
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class MatmulConv2d(nn.Module):
    """Equals ``convolution``, with the same parameters under the same names.

    [N, C, H, W] to [N, C', H', W'], fastest in channels-last memory. If the map is not small, or the convolution is
    grouped but not depthwise, PyTorch's convolution runs.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight = convolution.weight
        self.bias = convolution.bias
        self._wrapped = [convolution]  # in a list: its parameters are registered above already
        self._connections: dict[torch.Size, tuple[torch.Tensor, torch.Size]] = {}

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        conv = self._wrapped[0]
        if conv.kernel_size == (1, 1) and conv.groups == 1 and conv.padding in ((0, 0), "same", "valid"):
            rows = maps.permute(0, 2, 3, 1)[:, :: conv.stride[0], :: conv.stride[1]]
            return F.linear(rows, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        taps, pixels = self.weight[0, 0].numel(), maps[0, 0].numel()
        if conv.groups == 1 and pixels <= taps:
            return self._dense(maps)
        if conv.groups == conv.in_channels == conv.out_channels and pixels <= 16:
            return self._depthwise(maps)
        return conv(maps)

    def _dense(self, maps: torch.Tensor) -> torch.Tensor:
        connections, shape = self._connect(maps)
        rows = maps.permute(0, 2, 3, 1).flatten(1)
        kernels = torch.einsum("oit,tqp->qopi", self.weight.flatten(2), connections)  # q: output, p: input position
        return self._as_maps(rows @ kernels.reshape(-1, rows.shape[1]).T, shape)

    def _depthwise(self, maps: torch.Tensor) -> torch.Tensor:
        connections, shape = self._connect(maps)
        pixels = maps.permute(0, 2, 3, 1).flatten(1, 2)
        kernels = connections.flatten(1).T @ self.weight.flatten(1).T  # channels last, or the product is slow
        # A sum of products, not a batched matrix product: for thousands of 4×4 matrices it is six times faster.
        return self._as_maps((pixels.unsqueeze(1) * kernels.unflatten(0, connections.shape[1:])).sum(2), shape)

    def _as_maps(self, rows: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """[N, positions and channels] to [N, C', H', W'], with the bias."""
        maps = rows.reshape(len(rows), *shape, -1)
        return (maps if self.bias is None else maps + self.bias).permute(0, 3, 1, 2)

    def _connect(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Size]:
        """Return which kernel tap connects which input to which output position: 0 or 1 [taps, outputs, inputs].

        A convolution of the same class computes it, so every stride, padding and dilation is correct: each output
        channel is one tap, and each image has one input position set.
        """
        size = maps.shape[2:]
        if size not in self._connections:
            conv = self._wrapped[0]
            taps, inputs = conv.weight[0, 0].numel(), size.numel()
            shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
            with torch.random.fork_rng(devices=[]):  # its initial weights must not consume random numbers
                probe = type(conv)(1, taps, *shape, bias=False)  # type: ignore[arg-type]
            probe.to(conv.weight.device, conv.weight.dtype)
            with torch.no_grad():
                probe.weight.copy_(torch.eye(taps).view_as(probe.weight))
                outputs = probe(torch.eye(inputs).to(probe.weight).view(inputs, 1, *size))  # [inputs, taps, H', W']
            connections = outputs.flatten(2).permute(1, 2, 0).contiguous()
            self._connections[size] = connections, outputs.shape[2:]
        return self._connections[size]


def use_matmul(module: nn.Module) -> None:
    """Replace the plain convolutions inside ``module``; parameters, their names and the results stay the same."""
    for name, child in module.named_children():
        if is_plain(child):
            setattr(module, name, MatmulConv2d(child))
        else:
            use_matmul(child)


def is_plain(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Return whether ``module`` computes a convolution with its unchanged weight, and nothing else.

    A subclass may standardize the weight first (timm's ``StdConv2d`` and ``ScaledStdConv2d``) or have another
    constructor. A parametrization, which is a subclass too, and a hook can do anything.
    """
    return (
        type(module) in _plain_types()
        and module.padding_mode == "zeros"
        and not {"forward", "_conv_forward"} & vars(module).keys()
        and not any(getattr(module, hooks) for hooks in HOOKS)
    )


def _plain_types() -> set[type[nn.Module]]:
    types: set[type[nn.Module]] = {nn.Conv2d}
    if timm := sys.modules.get("timm.layers"):  # without timm, no module is a convolution of timm
        types.add(timm.Conv2dSame)
    return types
