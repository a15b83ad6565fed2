"""What a stage costs before it does anything useful, and what `dvc repro` costs with nothing to do.

    python -m benchmarks.fixed_costs

Every stage runs in a process of its own, on 64 images, so that its time is its start. The imports that a start consists
of are timed beside it. Prints a table and writes benchmarks/results/fixed-costs-<device>-<study>.json.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import settings as common
from headstart import files
from headstart.console import UserError, run_cli
from headstart.training import compute

RUNS = 5
FEW = 64
TINY = [f"training_images={FEW}", "validation_images=0", f"batch_size={FEW}", "n_epochs=1", "image_size=32"]
IMPORTS = ("torch", "torch, torch._dynamo", "torch, torch._dynamo, torchvision", "torch, torch._dynamo, timm")
ROOT = Path.cwd()


def main(*arguments: str) -> None:
    options = common.parser(__doc__).parse_args(arguments)
    options.set = TINY + options.set
    settings = common.read(options)
    nothing = _median("dvc", "repro", module=True)
    frozen, finetuned = (
        next(name for name, configuration in settings.configurations.items() if configuration.finetuning == wanted)
        for wanted in (False, True)
    )
    with common.workspace(settings):
        seconds = {"prepare": _median("stages.prepare", module=True)}
        _keep_few_test_images(f"data/prepared/{settings.study}.safetensors")
        for start in ("true", "false"):
            seconds[f"initialize {start}"] = _median("stages.initialize", start, module=True)
            seconds[f"features {start}"] = _median("stages.features", start, module=True)
        for name in (frozen, finetuned):
            seconds[f"train {name}"] = _median("stages.train", name, module=True)
            seconds[f"evaluate {name}"] = _median("stages.evaluate", name, module=True)
        seconds |= {f"import {modules}": _median(f"import {modules}", module=False) for modules in IMPORTS}
        seconds["dvc repro, nothing to do"] = nothing
        common.write("fixed-costs-", settings, compute.configure(), {"seconds": seconds})
    print(f"| process | seconds, median of {RUNS} |\n|---|---:|")
    for name, value in seconds.items():
        print(f"| {name} | {value:.1f} |")


def _median(*command: str, module: bool) -> float:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m" if module else "-c", *command],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        times.append(time.perf_counter() - started)
        if done.returncode:
            raise UserError(f"{' '.join(command)} failed: {done.stderr}")
    return statistics.median(times)


def _keep_few_test_images(prepared: str) -> None:
    tensors, description = files.read_tensors(prepared)
    files.write_tensors(prepared, {
        name: tensor[:FEW] if name.startswith("test") else tensor for name, tensor in tensors.items()
    }, description)  # fmt: skip


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
