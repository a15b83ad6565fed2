"""Measure how training changed the norm of the fine-tuned weights, and the spread of the logits.

    python -m benchmarks.weight_norms

The command prints a Markdown table with one row per fine-tuned configuration of the selected study: the norm of the
convolutions and of the batch-norm scales, in percent of their initial norm, and the standard deviation of the logits of
the test images. Weight decay shrinks weights unless gradients counteract it. Run `dvc repro` first.
"""

import sys

import torch
from torch import nn

from headstart import files, params
from headstart.console import run_cli
from headstart.network import splitting
from headstart.network.saved_model import SavedModel
from scripts import argument_parser
from stages.paths import initial_file, model_file, predictions_file


def main(*arguments: str) -> None:
    argument_parser(__doc__).parse_args(arguments)
    settings = params.read()
    seed = settings.selected_study.seeds[0]
    print("| configuration | convolutions % | batch-norm scales % | spread of the logits |\n|---|---:|---:|---:|")
    for name, configuration in settings.configurations.items():
        if configuration.finetuning:
            initial, trained = (_norms(SavedModel.read(path), settings.selected_study.finetune_from) for path in (
                initial_file(settings, configuration.pretrained, seed), model_file(settings, name, seed)
            ))  # fmt: skip
            shares = [f"{100 * trained[kind] / initial[kind]:.1f}" for kind in (nn.Conv2d, nn.BatchNorm2d)]
            spread = files.read_arrays(predictions_file(settings, name)).arrays["logits"][0].std(0).mean()
            print(f"| {name} | {' | '.join(shares)} | {spread:.3f} |")


def _norms(model: SavedModel, layer: str) -> dict[type, float]:
    """Return the norm of all weights of each kind of layer in the head, taken as one vector."""
    _, head = splitting.split_backbone_head(model.build(), layer)
    return {
        kind: float(
            torch.cat([module.weight.flatten() for module in head.modules() if isinstance(module, kind)])
            .detach()
            .norm()
        )
        for kind in (nn.Conv2d, nn.BatchNorm2d)
    }


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
