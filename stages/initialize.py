"""Write the initial weights for pretrained or random initialization: one complete network per seed."""

import sys

import torch

from headstart import files
from headstart.console import run_cli
from headstart.data import splits
from headstart.network import initial_weights
from headstart.training import compute
from pipeline.provenance import Run
from stages.paths import initial_file, prepared_file


def main(pretrained: str, study: str = "") -> None:
    run = Run(f"initialize@{'pretrained' if pretrained == 'true' else 'random'}", study)
    settings, device = run.settings, compute.configure("cpu", dtype=torch.float32)
    # No output depends on the configurations, so dvc.yaml does not list them, and a new configuration does not re-run
    # this stage. An invalid layer of a new configuration is then reported by its stage `train`.
    initial_weights.check_configurations(settings)
    training = splits.read_split(prepared_file(settings), "training")
    images = torch.from_numpy(training.images) if pretrained == "false" else None
    seeds = settings.selected_study.seeds
    with files.atomic_write(initial_file(settings, pretrained == "true", seeds[0]).parent) as folder:
        for seed in seeds:
            initial = initial_weights.build_initial_model(
                settings.selected_study, seed=seed, images=images, classes=training.classes,
                prepared_size=training.images.shape[-1],
            )  # fmt: skip
            initial.write(folder / initial_file(settings, pretrained == "true", seed).name)
    run.finish(**device.describe(), weights=initial.weights, weights_sha256=initial.sha256)


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
