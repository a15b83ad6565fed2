"""Write the complete initial networks that all configurations of one start begin from, one a seed."""

import sys

import torch

from headstart import files
from headstart.console import run
from headstart.data import splits
from headstart.network import starts
from headstart.training import compute
from stages.paths import prepared_file, start_file
from stages.provenance import Run


def main(pretrained: str, study: str = "") -> None:
    record = Run(f"start@{'pretrained' if pretrained == 'true' else 'random'}", study)
    settings, device = record.settings, compute.choose("cpu", dtype=torch.float32)
    # No output depends on a configuration, so dvc.yaml lists none, and a new one does not re-run this stage. Its stage
    # `train` is then the first to notice a wrong layer.
    starts.check_configurations(settings)
    training = splits.read_split(prepared_file(settings), "training")
    images = torch.from_numpy(training.images) if pretrained == "false" else None
    seeds = settings.current.seeds
    with files.replacing(start_file(settings, pretrained == "true", seeds[0]).parent) as folder:
        for seed in seeds:
            start = starts.make(
                settings.current, seed=seed, images=images, classes=training.classes,
                prepared_size=training.images.shape[-1],
            )  # fmt: skip
            start.write(folder / start_file(settings, pretrained == "true", seed).name)
    record.finish(**device.describe(), weights=start.weights, weights_sha256=start.sha256)


if __name__ == "__main__":
    run(main, *sys.argv[1:])
