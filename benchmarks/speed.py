"""Compare the speed of Headstart with a plain and a tuned training loop.

    python -m benchmarks.speed --study full --plain-epochs 1

Each loop trains and tests every configuration, and the three alternate in one run. Headstart also computes the initial
weights and the features, which only it needs. Preparing the images is not counted. The plain and the tuned loop run in
one process. Headstart is timed twice: in one process, as `python -m stages` runs, and with one process per stage, as
`dvc repro` runs. A slow loop can be timed on fewer epochs. Its training time is then scaled up, which the output says,
and its accuracy is not compared.

The command prints a table. If no setting but `weights` is changed, it also writes
benchmarks/results/<device>-<study>.json, or with --only benchmarks/results/only-<device>-<study>.json.
"""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import stages.features
import stages.initialize
import stages.prepare
from benchmarks import loops
from benchmarks import settings as common
from benchmarks.loops import Task
from headstart import files
from headstart.console import UserError, run_cli
from headstart.network import splitting
from headstart.network.saved_model import SavedModel
from headstart.params import Params
from headstart.training import compute
from headstart.training.compute import Compute
from stages.paths import initial_file

ROOT = str(Path(__file__).parent.parent)
WAYS = ("plain", "tuned", "headstart")
NOISE = {True: 0.01, False: 0.03}  # in test accuracy, with and without pretrained weights


def main(*arguments: str) -> None:
    parser = common.parser(__doc__)
    for way in ("plain", "tuned"):
        parser.add_argument(f"--{way}-epochs", type=int, metavar="N", help=f"time the {way} loop on N epochs")
    parser.add_argument(
        "--only", action="append", metavar="CONFIGURATION", help="time only this configuration; may be repeated"
    )
    options = parser.parse_args(arguments)
    settings, device = common.read(options), compute.configure()
    if options.only:
        selected = {name: settings.configuration(name) for name in options.only}
        settings = dataclasses.replace(settings, configurations=selected)
    n_epochs = settings.selected_study.n_epochs
    epochs = {"plain": options.plain_epochs or n_epochs, "tuned": options.tuned_epochs or n_epochs,
              "headstart": n_epochs}  # fmt: skip
    if not all(1 <= n <= n_epochs for n in epochs.values()):
        raise UserError(f"--plain-epochs and --tuned-epochs must be 1 to {n_epochs}")
    with common.workspace(settings):
        stages.prepare.main()
        shared, initial = _initialize(settings, device)
        images = files.read_tensors(f"data/prepared/{settings.study}.safetensors").tensors
        rows = []
        for name, configuration in settings.configurations.items():
            task = Task(name, settings, device, images, initial[configuration.pretrained])
            rows.append({"configuration": name} | {way: _time(task, way, epochs[way]) for way in WAYS})
            print(line(rows[-1]), file=sys.stderr, flush=True)
        model = initial[max(initial)]  # the pretrained model, if there is one
        process_seconds = _seconds_in_processes(settings)
        floor = _floor(settings, device, model, len(images["training_labels"]), len(images["test_labels"]))
        summary = _summary(rows, shared, epochs, n_epochs, floor, process_seconds)
        weights = {"weights": model.weights, "weights_sha256": model.sha256}
        if all(change.startswith("weights=") for change in options.set):
            content = {**weights, **summary, "configurations": rows}
            common.write("only-" if options.only else "", settings, device, content)
    _print(rows, summary, n_epochs)


def _initialize(settings: Params, device: Compute) -> tuple[dict[str, float], dict[bool, SavedModel]]:
    """Compute initial weights and features; return the seconds of each stage, and the initial models."""
    shared, initial = {}, {}
    for pretrained in sorted(
        {str(configuration.pretrained).lower() for configuration in settings.configurations.values()}
    ):
        shared[f"initialize {pretrained}"] = _seconds(partial(stages.initialize.main, pretrained), device)
        shared[f"features {pretrained}"] = _seconds(partial(stages.features.main, pretrained), device)
        initial[pretrained == "true"] = SavedModel.read(
            initial_file(settings, pretrained == "true", settings.selected_study.seeds[0])
        )
    return shared, initial


def _seconds(work: Callable[[], object], device: Compute) -> float:
    started = time.perf_counter()
    work()
    if device.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _seconds_in_processes(settings: Params) -> float:
    """Return the seconds of the same stages with one process per stage, as `dvc repro` runs them."""
    pretrained = sorted({str(configuration.pretrained).lower() for configuration in settings.configurations.values()})
    commands = [(stage, argument) for argument in pretrained for stage in ("initialize", "features")]
    commands += [(stage, name) for name in settings.configurations for stage in ("train", "evaluate")]
    paths = [ROOT, str(Path(ROOT, "src")), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    started = time.perf_counter()
    for stage, argument in commands:
        subprocess.run([sys.executable, "-m", f"stages.{stage}", argument], env=environment, check=True)
    return time.perf_counter() - started


def _time(task: Task, way: str, epochs: int) -> dict[str, float]:
    """Return the seconds of a loop, scaled up to all epochs, and its last training loss and test accuracy."""
    results: list[loops.Result] = []
    seconds = _seconds(lambda: results.append(getattr(loops, way)(task, epochs)), task.compute)
    [result] = results
    scaled = seconds + result.epoch_seconds * (task.study.n_epochs - epochs)
    return {"seconds": scaled, "train_loss": result.train_loss, "test_accuracy": result.test_accuracy}


def _floor(settings: Params, device: Compute, model: SavedModel, training: int, test: int) -> dict[str, float]:
    """Return the operations that no implementation can avoid, the rate of a large matrix product, and their quotient.

    Every image passes once through the network with each initial weights. The head of each fine-tuned configuration
    runs forward and backward for every training image in every epoch, and forward for every test image.
    """
    backbone, head = splitting.split_backbone_head(model.build(), settings.selected_study.finetune_from)
    activations, frozen, _ = _operations(backbone, torch.zeros(1, 3, *(settings.selected_study.image_size,) * 2))
    _, inference, step = _operations(head, activations)
    forward = frozen + inference
    initializations = {configuration.pretrained for configuration in settings.configurations.values()}
    finetuned = sum(configuration.finetuning for configuration in settings.configurations.values())
    operations = len(initializations) * (training + test) * forward
    operations += finetuned * (settings.selected_study.n_epochs * training * step + test * inference)
    rate = _matmul_rate(device)
    return {"operations": operations, "operations_per_second": rate, "seconds": operations / rate}


def _operations(module: nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """Return the output, the operations of a forward pass, and those of a forward and backward pass, for one image.

    A multiply-add is two operations. Only convolutions and linear layers count. Their backward pass costs twice the
    forward pass, or as much as the forward pass if no gradient of the inputs is needed. PyTorch's FlopCounterMode
    overestimates grouped convolutions.
    """
    forward, both = 0, 0

    def count(layer: nn.Conv2d | nn.Linear, arguments: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal forward, both
        operations = 2 * output.numel() * layer.weight[0].numel()
        forward += operations
        both += operations * (2 if arguments[0] is inputs else 3)

    hooks = [layer.register_forward_hook(count) for layer in module.modules()
             if isinstance(layer, (nn.Conv2d, nn.Linear))]  # fmt: skip
    with torch.no_grad():
        output = module(inputs)
    for hook in hooks:
        hook.remove()
    return output, forward, both


def _matmul_rate(device: Compute) -> float:
    """Return the operations per second of the fastest of ten large matrix products, in the precision of ``device``."""
    size = 8192 if device.device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device.device).to(device.dtype) for _ in range(2))
    return 2 * size**3 / min(_seconds(lambda: left @ right, device) for _ in range(10))


def _summary(
    rows: list[dict[str, Any]],
    shared: dict[str, float],
    epochs: dict[str, int],
    n_epochs: int,
    floor: dict[str, float],
    process_seconds: float,
) -> dict[str, Any]:
    totals = {way: sum(row[way]["seconds"] for row in rows) for way in epochs}
    totals["headstart"] += sum(shared.values())
    compared = [way for way in epochs if way != "headstart" and epochs[way] == n_epochs]
    agree = all(
        abs(row[way]["test_accuracy"] - row["headstart"]["test_accuracy"])
        <= NOISE[row["configuration"].startswith("pretrained")]
        for row in rows
        for way in compared
    )
    return {
        "seconds": totals,
        "times_as_fast_as": {way: totals[way] / totals["headstart"] for way in epochs if way != "headstart"},
        "seconds_in_processes": process_seconds,
        "times_as_fast_in_processes": {way: totals[way] / process_seconds for way in epochs if way != "headstart"},
        "floor": floor,
        "times_the_floor": totals["headstart"] / floor["seconds"],
        "epochs_timed": epochs,
        "same_accuracy_within_noise": {"ways": compared, "agree": agree},
        "headstart_shared_seconds": shared,
    }


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    values = [f"{row[way]['seconds']:.1f} s, {100 * row[way]['test_accuracy']:.2f} %" for way in WAYS]
    losses = [f"{row[way]['train_loss']:.4f}" for way in WAYS[1:]]
    return f"| {row['configuration']} | {' | '.join([*values, *losses])} |"


def _print(rows: list[dict[str, Any]], summary: dict[str, Any], n_epochs: int) -> None:
    print(
        f"| configuration | {' | '.join(WAYS)} | last train loss, tuned | headstart |\n|---|---:|---:|---:|---:|---:|"
    )
    for row in rows:
        print(line(row))
    shared = sum(summary["headstart_shared_seconds"].values())
    print(f"| initial weights and features | | | {shared:.1f} s | | |")
    totals = " | ".join(f"{seconds:.1f} s" for seconds in summary["seconds"].values())
    print(f"| total | {totals} | | |\n")
    for way, ratio in summary["times_as_fast_as"].items():
        timed = summary["epochs_timed"][way]
        note = "" if timed == n_epochs else f" (timed on {timed} of {n_epochs} epochs, and scaled up)"
        in_processes = summary["times_as_fast_in_processes"][way]
        print(f"Headstart is {ratio:.1f} times as fast as the {way} loop{note}, and {in_processes:.1f} times with one "
              "process per stage.")  # fmt: skip
    floor = summary["floor"]
    rate = floor["operations_per_second"] / 1e12
    floor_time = f"{floor['seconds']:.1f} s at {rate:.3g} TFLOP/s"
    print(f"No implementation can avoid {floor['operations']:.3g} operations: {floor_time}.")
    print(f"Headstart takes {summary['times_the_floor']:.1f} times as long.")
    check = summary["same_accuracy_within_noise"]
    if check["ways"]:
        verdict = "agree" if check["agree"] else "DO NOT agree"
        print(f"Test accuracies of headstart, {' and '.join(check['ways'])} {verdict} within 1 point (random: 3).")


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
