"""Extract the features of all images with the frozen network, once for all configurations with its initial weights."""

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

DISK_SPACE_HINT = (
    "Free some space (DVC's cache may need as much again), or set cache_activations to false in params.yaml."
)


def main(pretrained: str, study: str = "") -> None:
    run = Run(f"features@{'pretrained' if pretrained == 'true' else 'random'}", study)
    settings, device = run.settings, compute.configure()
    prepared = prepared_file(settings)
    images = {split: torch.from_numpy(splits.read_split(prepared, split).images) for split in SPLITS}
    # With pretrained weights, all seeds share one file, which the first seed writes.
    seeds = {
        features_file(settings, pretrained == "true", seed): seed for seed in reversed(settings.selected_study.seeds)
    }
    folder = next(iter(seeds)).parent
    with files.atomic_write(folder) as tmp_folder:
        for path, seed in seeds.items():
            initial = SavedModel.read(initial_file(settings, pretrained == "true", seed))
            backbone, pooled, _ = splitting.split_model(
                initial.build(), [settings.selected_study.finetune_from, initial.classifier]
            )
            modules = {"activations": backbone, "features": pooled}
            if not settings.selected_study.cache_activations or not splitting.has_parameters(backbone):
                modules = {"features": nn.Sequential(backbone, pooled)}
            extract = partial(
                extract_features, modules=tuple(modules.values()), compute=device, prepare=initial.preprocess
            )
            size = sum(output.nbytes for output in extract(images["test"][:1])) * sum(map(len, images.values()))
            n_remaining = len(seeds) - list(seeds).index(path)
            files.require_disk_space(folder, size * n_remaining, DISK_SPACE_HINT)
            tensors: dict[str, torch.Tensor] = {}
            for split in SPLITS:
                results = extract(images[split], label=f"features of {split} images")
                tensors |= {f"{split}_{name}": result for name, result in zip(modules, results, strict=True)}
            files.write_tensors(tmp_folder / path.name, tensors, {"precision": device.precision})
    run.finish(**device.describe(), **device.peak_memory())


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
