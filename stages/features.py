"""Run the frozen network of one start over all images, once for all configurations that begin from it."""

import sys
from functools import partial

import torch
from torch import nn

from headstart import files
from headstart.console import run
from headstart.data import splits
from headstart.data.splits import SPLITS
from headstart.network import models
from headstart.network.snapshot import Snapshot
from headstart.training import compute
from headstart.training.forward import outputs
from stages.paths import features_file, prepared_file, start_file
from stages.provenance import Run

REMEDY = "free some space (DVC's cache may want as much again), or set store_activations to false in params.yaml"


def main(pretrained: str, study: str = "") -> None:
    record = Run(f"features@{'pretrained' if pretrained == 'true' else 'random'}", study)
    settings, device = record.settings, compute.choose()
    prepared = prepared_file(settings)
    images = {split: torch.from_numpy(splits.read_split(prepared, split).images) for split in SPLITS}
    # With pretrained weights all seeds share one file, which the first of them makes.
    seeds = {features_file(settings, pretrained == "true", seed): seed for seed in reversed(settings.current.seeds)}
    folder = next(iter(seeds)).parent
    with files.replacing(folder) as beside:
        for path, seed in seeds.items():
            start = Snapshot.read(start_file(settings, pretrained == "true", seed))
            trunk, pooled, _ = models.split(start.network(), [settings.current.finetune_from, start.classifier])
            parts = {"activations": trunk, "features": pooled}
            if not settings.current.store_activations or not models.is_frozen(trunk):
                parts = {"features": nn.Sequential(trunk, pooled)}
            through = partial(outputs, modules=tuple(parts.values()), compute=device, prepare=start.preprocess)
            size = sum(one.nbytes for one in through(images["test"][:1])) * sum(map(len, images.values()))
            still_to_write = len(seeds) - list(seeds).index(path)
            files.require_room(folder, size * still_to_write, REMEDY)
            tensors: dict[str, torch.Tensor] = {}
            for split in SPLITS:
                results = through(images[split], label=f"features of {split} images")
                tensors |= {f"{split}_{name}": result for name, result in zip(parts, results, strict=True)}
            files.write_tensors(beside / path.name, tensors, {"precision": device.precision})
    record.finish(**device.describe(), **device.peak_memory())


if __name__ == "__main__":
    run(main, *sys.argv[1:])
