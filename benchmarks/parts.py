"""Time the two parts of a study, the frozen trunk and the trained head, against other ways to compute them.

    python -m benchmarks.parts [--study full] [--set KEY=VALUE]

The trunk: as it is, in bfloat16, with batch norm folded into its convolutions, as TorchScript optimised for inference,
and in chunks of other sizes. A training step of the head: with PyTorch's own convolutions, as Headstart trains it, and
that in bfloat16, which is fast on processors that multiply it and very slow on others. All alternate in one run, on
random weights; the table has the median of the ratios. Writes benchmarks/results/parts-<device>-<study>.json.
"""

import copy
import dataclasses
import itertools
import statistics
import sys
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks import settings as common
from headstart.console import run
from headstart.network import models
from headstart.training import compute
from headstart.training.compute import Compute
from headstart.training.convolutions import use_matmul

ROUNDS = 15


def main(*arguments: str) -> None:
    settings, device = common.read(common.parser(__doc__).parse_args(arguments)), compute.choose()
    study = settings.current
    torch.manual_seed(0)
    trunk, head = models.cut(models.build(study.model_name, 10), study.finetune_from)
    trunk.eval().to(device.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    head.to(device.device)
    images = torch.randn(256, 3, study.image_size, study.image_size, device=device.device)
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        activations = torch.cat([trunk(chunk) for chunk in images.split(32)])
        trunks = _ratios(_trunks(trunk, images[: device.chunk]), device)
        sizes = {f"chunks of {size}": _in_chunks(trunk, images, size) for size in (device.chunk, 32, 128, 256)}
        trunks |= _ratios(sizes, device)
    inputs = activations[: study.batch_size].contiguous(memory_format=torch.channels_last)
    coarse = dataclasses.replace(device, dtype=torch.bfloat16)
    steps = _ratios({
        "own convolutions": _step(head, inputs, device),
        "as Headstart trains": _step(_fast(head), inputs, device),
        "as Headstart trains in bfloat16": _step(_fast(head), inputs, coarse),
    }, device)  # fmt: skip
    with torch.no_grad(), coarse.autocast():
        trunks |= _ratios({"as it is": lambda: _exact(trunk, images[: device.chunk]),
                           "trunk, bfloat16": lambda: trunk(images[: device.chunk])}, device)  # fmt: skip
    print("| way | times as fast |\n|---|---:|")
    for name, ratio in {**trunks, **steps}.items():
        print(f"| {name} | {ratio:.2f} |")
    common.write("parts-", settings, device, {"times_as_fast": {"trunk": trunks, "step": steps}})


def _ratios(ways: dict[str, Callable[[], object]], device: compute.Compute) -> dict[str, float]:
    """How many times as fast as the first way each other one is: the median over rounds."""
    rounds = []
    for _ in range(ROUNDS):
        seconds = []
        for way in ways.values():
            started = time.perf_counter()
            way()
            if device.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        rounds.append(seconds)
    first, *others = zip(*rounds[2:], strict=True)  # the first rounds warm up
    return {
        name: statistics.median(mine / theirs for mine, theirs in zip(first, other, strict=True))
        for name, other in zip(list(ways)[1:], others, strict=True)
    }


def _trunks(trunk: nn.Module, images: torch.Tensor) -> dict[str, Callable[[], object]]:
    folded = _folded(copy.deepcopy(trunk)).to(memory_format=torch.channels_last)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is being retired, and says so
        scripted = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(copy.deepcopy(trunk), images)))
    for other in (folded, scripted):
        torch.testing.assert_close(other(images), trunk(images), rtol=1e-2, atol=1e-3)
    return {
        "as it is": lambda: trunk(images),
        "trunk, batch norm folded": lambda: folded(images),
        "trunk, TorchScript": lambda: scripted(images),
    }


def _folded(module: nn.Module) -> nn.Module:
    """Fold every batch norm into the convolution before it; a layer of timm's also holds the activation."""
    children = list(module.named_children())
    for (name, child), (next_name, following) in itertools.pairwise(children):
        if isinstance(child, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(child, following))
            setattr(module, next_name, getattr(following, "act", nn.Identity()))
    for _, child in module.named_children():
        _folded(child)
    return module


def _exact(trunk: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.autocast(images.device.type, enabled=False):
        return trunk(images)


def _in_chunks(trunk: nn.Module, images: torch.Tensor, size: int) -> Callable[[], object]:
    return lambda: [trunk(chunk) for chunk in images.split(size)]


def _fast(head: nn.Module) -> nn.Module:
    head = copy.deepcopy(head)
    use_matmul(head)
    return head


def _step(head: nn.Module, inputs: torch.Tensor, compute: Compute) -> Callable[[], object]:
    head = copy.deepcopy(head).train()
    optimizer = torch.optim.Adam(head.parameters(), fused=True)
    labels = torch.arange(len(inputs), device=inputs.device) % 10

    def step() -> None:
        optimizer.zero_grad()
        with compute.autocast():
            loss = F.cross_entropy(head(inputs), labels)
        loss.backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    run(main, *sys.argv[1:])
