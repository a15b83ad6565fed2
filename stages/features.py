"""Run the frozen network of one start over all images, once for all configurations that begin from it."""

import sys
from functools import partial

import torch
from torch import nn

from headstart import files
from headstart.console import run_cli
from headstart.data import splits
from headstart.data.splits import SPLITS
from headstart.network import splitting
from headstart.network.saved_model import SavedModel
from headstart.training import compute
from headstart.training.inference import extract_features
from pipeline.provenance import Run
from stages.paths import features_file, initial_file, prepared_file

REMEDY = "Free some space (DVC's cache may need as much again), or set cache_activations to false in params.yaml."


def main(pretrained: str, study: str = "") -> None:
    record = Run(f"features@{'pretrained' if pretrained == 'true' else 'random'}", study)
    settings, device = record.settings, compute.configure()
    prepared = prepared_file(settings)
    images = {split: torch.from_numpy(splits.read_split(prepared, split).images) for split in SPLITS}
    # With pretrained weights all seeds share one file, which the first of them makes.
    seeds = {
        features_file(settings, pretrained == "true", seed): seed for seed in reversed(settings.selected_study.seeds)
    }
    folder = next(iter(seeds)).parent
    with files.atomic_write(folder) as beside:
        for path, seed in seeds.items():
            start = SavedModel.read(initial_file(settings, pretrained == "true", seed))
            backbone, pooled, _ = splitting.split_model(
                start.build(), [settings.selected_study.finetune_from, start.classifier]
            )
            parts = {"activations": backbone, "features": pooled}
            if not settings.selected_study.cache_activations or not splitting.has_parameters(backbone):
                parts = {"features": nn.Sequential(backbone, pooled)}
            through = partial(extract_features, modules=tuple(parts.values()), compute=device, prepare=start.preprocess)
            size = sum(one.nbytes for one in through(images["test"][:1])) * sum(map(len, images.values()))
            still_to_write = len(seeds) - list(seeds).index(path)
            files.require_disk_space(folder, size * still_to_write, REMEDY)
            tensors: dict[str, torch.Tensor] = {}
            for split in SPLITS:
                results = through(images[split], label=f"features of {split} images")
                tensors |= {f"{split}_{name}": result for name, result in zip(parts, results, strict=True)}
            files.write_tensors(beside / path.name, tensors, {"precision": device.precision})
    record.finish(**device.describe(), **device.peak_memory())


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
