"""Measure the effect of each of the three faults of the published script, in the selected study.

    python -m benchmarks.faults pretrained-finetuned-adam 2

The command trains the whole network in a plain loop, as the published script did, on the prepared images and from the
initial weights of the configuration. Run `dvc repro` first. It prints a Markdown table.
"""

import copy
import sys

import torch
import torch.nn.functional as F
from torch import nn

from headstart import files, params
from headstart.console import UserError, progress, run_cli
from headstart.network import splitting
from headstart.network.saved_model import SavedModel
from headstart.training import compute
from headstart.training.inference import extract_features
from headstart.training.loop import image_order
from scripts import argument_parser
from stages.paths import initial_file, prepared_file

IMAGES = 3_000  # training images, so that a run takes minutes
VARIANTS = {
    # name: (only the classifier is optimized, a new optimizer for each batch, batch norm in training mode everywhere)
    "none": (False, False, False),
    "1: only the classifier reaches the optimizer": (True, False, False),
    "2: a new optimizer for each batch": (False, True, False),
    "3: frozen batch norm in training mode": (False, False, True),
    "all three": (True, True, True),
}


def main(*arguments: str) -> None:
    parser = argument_parser(__doc__)
    default = "pretrained-finetuned-adam"
    parser.add_argument(
        "configuration",
        metavar="CONFIGURATION",
        nargs="?",
        default=default,
        help="a section of configurations in params.yaml (default: %(default)s)",
    )
    parser.add_argument(
        "epochs", metavar="EPOCHS", nargs="?", type=int, default=2, help="number of epochs (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        raise UserError(f"EPOCHS must be 1 or more. Got {options.epochs}.")
    settings, device = params.read(), compute.configure()
    study = settings.selected_study
    configuration = settings.configuration(options.configuration)
    data = files.read_tensors(prepared_file(settings)).tensors
    initial = SavedModel.read(initial_file(settings, configuration.pretrained, study.seeds[0]))
    layer = study.finetune_from if configuration.finetuning else initial.classifier
    print("| fault | test accuracy % | weights moved in the fine-tuned layers % | frozen statistics moved % |")
    print("|---|---:|---:|---:|")
    for name, variant in VARIANTS.items():
        network = initial.build()
        before = copy.deepcopy(network.state_dict())
        backbone, *head = splitting.split_model(network, [layer, initial.classifier])
        _train(network, backbone, nn.Sequential(*head), initial, data, study, configuration, variant, options.epochs,
               device, name)  # fmt: skip
        [logits] = extract_features(
            data["test_images"], (network,), compute=device, prepare=initial.preprocess, label="testing"
        )
        accuracy = 100 * (logits.argmax(1) == data["test_labels"]).float().mean().item()
        finetuned = head[0].state_dict(keep_vars=True)
        parameters = _fraction_changed(finetuned, network, before, parameters=True) if finetuned else 0.0
        frozen = backbone.state_dict(keep_vars=True)
        statistics = _fraction_changed(frozen, network, before, parameters=False)
        print(f"| {name} | {accuracy:.2f} | {100 * parameters:.0f} | {100 * statistics:.0f} |", flush=True)


def _train(
    network: nn.Module, backbone: nn.Module, head: nn.Sequential, initial: SavedModel, data: dict[str, torch.Tensor],
    study: params.Study, configuration: params.Configuration, variant: tuple[bool, bool, bool], epochs: int,
    device: compute.Compute, name: str,
) -> None:  # fmt: skip
    classifier_only, reset_optimizer, training_mode = variant
    parameters = list((head[-1] if classifier_only else head).parameters())
    network.to(device.device)
    optimizer = _optimizer(configuration, parameters)
    head.train()
    backbone.train(training_mode)
    images, labels = data["training_images"][:IMAGES], data["training_labels"][:IMAGES]
    with progress(epochs * len(labels), name) as bar:
        for epoch in range(1, epochs + 1):
            for batch in image_order(study.seeds[0], epoch, len(labels)).split(study.batch_size):
                if reset_optimizer:
                    optimizer = _optimizer(configuration, parameters)
                with torch.set_grad_enabled(False):
                    activations = backbone(initial.preprocess(images[batch].to(device.device)))
                loss = F.cross_entropy(head(activations), labels[batch].to(device.device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                bar.update(len(batch))


def _optimizer(configuration: params.Configuration, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if configuration.optimizer == "Adam":
        return torch.optim.Adam(parameters, lr=configuration.lr)
    return torch.optim.SGD(parameters, lr=configuration.lr, momentum=configuration.momentum or 0,
                           weight_decay=configuration.weight_decay or 0)  # fmt: skip


def _fraction_changed(
    state: dict[str, torch.Tensor], network: nn.Module, before: dict[str, torch.Tensor], *, parameters: bool
) -> float:
    """Return the fraction of the parameters in ``state``, or of its batch-norm statistics, that differ from before."""
    members = {id(tensor) for tensor in state.values()}
    changed, total = 0, 0
    for name, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) in members and tensor.is_floating_point() and isinstance(tensor, nn.Parameter) == parameters:
            changed += int((tensor.detach().cpu() != before[name]).sum())
            total += tensor.numel()
    return changed / total


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
