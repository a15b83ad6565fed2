"""Time variants of the frozen backbone and of a training step of the head.

    python -m benchmarks.components --study full

The backbone is timed as it is, in bfloat16, with batch norm folded into the convolutions, as TorchScript optimized for
inference, and in chunks of other sizes. A training step of the head is timed with PyTorch's convolutions, as Headstart
trains, and as Headstart trains in bfloat16, which is fast only on CPUs with native bfloat16 support. The variants
alternate in one run with random weights, and the first table has medians of the speed-ups. The second table has the
seconds of a training step as Headstart repeats it (on a GPU as a CUDA graph), of the backbone on a chunk, of a
checkpoint, and of a file of 287 MB, the size of the features of `full`. The command also writes
benchmarks/results/parts-<device>-<study>.json.
"""

import copy
import dataclasses
import itertools
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks import settings as common
from headstart import files
from headstart.console import run_cli
from headstart.network import models, splitting
from headstart.params import Configuration
from headstart.training import compute
from headstart.training.checkpoints import Checkpoint
from headstart.training.compute import Compute
from headstart.training.convolutions import use_matmul
from headstart.training.cuda_graphs import GraphedStep, Step
from headstart.training.inference import BatchedInference
from headstart.training.optimizers import make_optimizer
from headstart.training.pooling import use_deterministic

ROUNDS = 15
ADAM = Configuration(pretrained=True, finetuning=True, optimizer="Adam", lr=0.001)
HeadAndOptimizer = tuple[nn.Module, torch.optim.Optimizer]


def main(*arguments: str) -> None:
    settings, device = common.read(common.parser(__doc__).parse_args(arguments)), compute.configure()
    study = settings.selected_study
    torch.manual_seed(0)
    backbone, head = splitting.split_backbone_head(models.build(study.model_name, 10), study.finetune_from)
    backbone.eval().to(device.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    head.to(device.device)
    images = torch.randn(256, 3, study.image_size, study.image_size, device=device.device)
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        activations = torch.cat([backbone(chunk) for chunk in images.split(32)])
        backbones = _speed_ups(_backbones(backbone, images[: device.inference_batch_size]), device)
        sizes = {
            f"chunks of {size}": _in_chunks(backbone, images, size)
            for size in (device.inference_batch_size, 32, 128, 256)
        }
        backbones |= _speed_ups(sizes, device)
    inputs = activations[: study.batch_size].contiguous(memory_format=torch.channels_last)
    bfloat16 = dataclasses.replace(device, dtype=torch.bfloat16)
    steps = _speed_ups({
        "own convolutions": _plain_step(head, inputs, device),
        "as Headstart trains": _step(head, inputs, device)[0],
        "as Headstart trains in bfloat16": _step(head, inputs, bfloat16)[0],
    }, device)  # fmt: skip
    chunk = images[: device.inference_batch_size]
    with torch.no_grad(), bfloat16.autocast():
        precisions = {"as it is": lambda: _float32(backbone, chunk), "backbone, bfloat16": lambda: backbone(chunk)}
        backbones |= _speed_ups(precisions, device)
    print("| way | times as fast |\n|---|---:|")
    for name, ratio in {**backbones, **steps}.items():
        print(f"| {name} | {ratio:.2f} |")
    seconds = _all_seconds(backbone, chunk, head, inputs, device)
    print("\n| part | seconds |\n|---|---:|")
    for name, value in seconds.items():
        print(f"| {name} | {value:.4f} |")
    content = {"times_as_fast": {"backbone": backbones, "step": steps}, "seconds": seconds}
    common.write("parts-", settings, device, content)


def _speed_ups(variants: dict[str, Callable[[], object]], device: compute.Compute) -> dict[str, float]:
    """Return the speed-up of each variant over the first one, as the median over rounds."""
    rounds = []
    for _ in range(ROUNDS):
        seconds = []
        for work in variants.values():
            started = time.perf_counter()
            work()
            if device.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        rounds.append(seconds)
    baseline, *columns = zip(*rounds[2:], strict=True)  # the first rounds warm up
    return {
        name: statistics.median(slow / fast for slow, fast in zip(baseline, column, strict=True))
        for name, column in zip(list(variants)[1:], columns, strict=True)
    }


def _backbones(backbone: nn.Module, images: torch.Tensor) -> dict[str, Callable[[], object]]:
    folded = _folded(copy.deepcopy(backbone)).to(memory_format=torch.channels_last)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        scripted = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(copy.deepcopy(backbone), images)))
    for variant in (folded, scripted):
        torch.testing.assert_close(variant(images), backbone(images), rtol=1e-2, atol=1e-3)
    return {
        "as it is": lambda: backbone(images),
        "backbone, batch norm folded": lambda: folded(images),
        "backbone, TorchScript": lambda: scripted(images),
    }


def _folded(module: nn.Module) -> nn.Module:
    """Fold every batch norm into the convolution before it. A batch norm of timm may also hold the activation."""
    children = list(module.named_children())
    for (name, child), (next_name, following) in itertools.pairwise(children):
        if isinstance(child, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
            setattr(module, name, fuse_conv_bn_eval(child, following))
            setattr(module, next_name, getattr(following, "act", nn.Identity()))
    for _, child in module.named_children():
        _folded(child)
    return module


def _float32(backbone: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.autocast(images.device.type, enabled=False):
        return backbone(images)


def _in_chunks(backbone: nn.Module, images: torch.Tensor, size: int) -> Callable[[], object]:
    return lambda: [backbone(chunk) for chunk in images.split(size)]


def _plain_step(head: nn.Module, inputs: torch.Tensor, compute: Compute) -> Callable[[], object]:
    """Return a training step of a copy of ``head`` in plain PyTorch."""
    head = copy.deepcopy(head).train()
    return partial(_train, head, torch.optim.Adam(head.parameters(), fused=True), compute, inputs, _labels(inputs))


def _step(head: nn.Module, inputs: torch.Tensor, compute: Compute) -> tuple[Callable[[], object], HeadAndOptimizer]:
    """Return a training step of a copy of ``head`` as in Headstart, with the copy and its optimizer."""
    head = copy.deepcopy(head).train()
    if compute.matmul_convolutions:
        use_matmul(head)
    if compute.device.type == "cuda":
        use_deterministic(head)
    optimizer = make_optimizer(ADAM, head, compute)
    step: Step = partial(_train, head, optimizer, compute)
    if compute.graphs:
        step = GraphedStep(step, len(inputs), head, optimizer)
    return partial(step, inputs, _labels(inputs)), (head, optimizer)


def _train(
    head: nn.Module, optimizer: torch.optim.Optimizer, compute: Compute, inputs: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    optimizer.zero_grad()
    with compute.autocast():
        loss = F.cross_entropy(head(inputs), labels)
    loss.backward()
    optimizer.step()
    return (loss.detach(),)


def _labels(inputs: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(inputs), device=inputs.device) % 10


def _all_seconds(
    backbone: nn.Module, images: torch.Tensor, head: nn.Module, inputs: torch.Tensor, device: Compute
) -> dict[str, float]:
    step, head_and_optimizer = _step(head, inputs, device)
    step()
    forward, on_gpu = BatchedInference((backbone,), device), device.device.type == "cuda"
    features = torch.zeros(70_000, 2_048, dtype=torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(Path(folder, "checkpoint.safetensors"), "")
        return {
            "a training step of the head": _seconds(step, device, 100 if on_gpu else 5),
            "the backbone on a chunk": _seconds(lambda: list(forward(images)), device, 20 if on_gpu else 2),
            "a checkpoint": _seconds(lambda: checkpoint.save(*head_and_optimizer, [], {}), device, 3),
            "287 MB written": _seconds(
                lambda: files.write_tensors(Path(folder, "x.safetensors"), {"x": features}), device, 3
            ),
        }


def _seconds(work: Callable[[], object], device: Compute, times: int) -> float:
    """Return the seconds of ``work``, as the mean of ``times`` calls without a wait between them."""
    started = time.perf_counter()
    for _ in range(times):
        work()
    if device.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / times


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
