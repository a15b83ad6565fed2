"""Run the frozen network of one start over all images, once for all configurations that begin from it."""

import sys

import torch
from torch import nn

from headstart import compute, datasets, files, models, params
from headstart.console import Clock, run
from headstart.forward import outputs
from headstart.snapshot import Snapshot


def main(pretrained: str) -> None:
    clock = Clock()
    settings, device = params.read(), compute.choose()
    start = Snapshot.read(f"data/start/{settings.scale}/pretrained-{pretrained}.safetensors")
    trunk, head = models.cut(start.network(), settings.current.finetune_from)
    parts = {"activations": trunk, "features": head[:-1]}
    if not settings.current.store_activations:
        parts = {"features": nn.Sequential(trunk, head[:-1])}
    tensors: dict[str, torch.Tensor] = {}
    for split in ("training", "validation", "test"):
        images = datasets.read_split(f"data/prepared/{settings.scale}.safetensors", split).images
        results = outputs(
            images, *parts.values(), compute=device,
            prepare=start.preprocess, label=f"features of {split} images",
        )  # fmt: skip
        tensors |= {f"{split}_{name}": result for name, result in zip(parts, results, strict=True)}
    files.write_tensors(f"data/features/{settings.scale}/pretrained-{pretrained}.safetensors", tensors)
    files.write_json(f"runs/{settings.scale}/features-pretrained-{pretrained}.json", clock.describe())


if __name__ == "__main__":
    run(main, *sys.argv[1:])
