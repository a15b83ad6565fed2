"""What training has done to the size of the fine-tuned layers' weights, and to what comes out of the network.

    python -m benchmarks.norms

For every fine-tuned configuration of the study that params.yaml names, whose models and predictions must be there, it
prints as a Markdown table the norm of the convolutions and of the batch norms' scales as a percentage of the start's,
and how far the logits of the test images spread around their mean. Weight decay shrinks what gradients do not hold up.
"""

import torch
from torch import nn

from headstart import files, params
from headstart.console import run_cli
from headstart.network import splitting
from headstart.network.saved_model import SavedModel
from stages.paths import initial_file, model_file, predictions_file


def main() -> None:
    settings = params.read()
    seed = settings.selected_study.seeds[0]
    print("| configuration | convolutions % | batch-norm scales % | spread of the logits |\n|---|---:|---:|---:|")
    for name, configuration in settings.configurations.items():
        if configuration.finetuning:
            start, trained = (_norms(SavedModel.read(path), settings.selected_study.finetune_from) for path in (
                initial_file(settings, configuration.pretrained, seed), model_file(settings, name, seed)
            ))  # fmt: skip
            shares = [f"{100 * trained[kind] / start[kind]:.1f}" for kind in (nn.Conv2d, nn.BatchNorm2d)]
            spread = files.read_arrays(predictions_file(settings, name)).arrays["logits"][0].std(0).mean()
            print(f"| {name} | {' | '.join(shares)} | {spread:.3f} |")


def _norms(snapshot: SavedModel, layer: str) -> dict[type, float]:
    """The norm of all weights of a kind of layer in the head, as one vector."""
    _, head = splitting.split_backbone_head(snapshot.build(), layer)
    return {
        kind: float(
            torch.cat([module.weight.flatten() for module in head.modules() if isinstance(module, kind)])
            .detach()
            .norm()
        )
        for kind in (nn.Conv2d, nn.BatchNorm2d)
    }


if __name__ == "__main__":
    run_cli(main)
