"""Time the start of each stage, the imports in it, and `dvc repro` with nothing to do.

    python -m benchmarks.fixed_costs

Every stage runs in a separate process on 64 images, so its time is nearly all start-up. The command prints a table and
writes benchmarks/results/fixed-costs-<device>-<study>.json.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import settings as common
from headstart.console import UserError, run_cli
from headstart.training import compute

RUNS = 5
N_IMAGES = 64
SMALL = [
    f"training_images={N_IMAGES}", "validation_images=0", f"test_images={N_IMAGES}", f"batch_size={N_IMAGES}",
    "n_epochs=1", "image_size=32", *common.ALL_LABELS,
]  # fmt: skip
IMPORTS = ("torch", "torch, torch._dynamo", "torch, torch._dynamo, torchvision", "torch, torch._dynamo, timm")
ROOT = Path.cwd()


def main(*arguments: str) -> None:
    options = common.parser(__doc__).parse_args(arguments)
    options.set = SMALL + options.set
    settings = common.read(options)
    up_to_date = _median("dvc", "repro", module=True)
    frozen, finetuned = (
        next(name for name, configuration in settings.configurations.items() if configuration.finetuning == finetuning)
        for finetuning in (False, True)
    )
    with common.workspace(settings):
        seconds = {"prepare": _median("stages.prepare", module=True)}
        for pretrained in ("true", "false"):
            seconds[f"initialize {pretrained}"] = _median("stages.initialize", pretrained, module=True)
            seconds[f"features {pretrained}"] = _median("stages.features", pretrained, module=True)
        for name in (frozen, finetuned):
            seconds[f"train {name}"] = _median("stages.train", name, module=True)
            seconds[f"evaluate {name}"] = _median("stages.evaluate", name, module=True)
        seconds |= {f"import {modules}": _median(f"import {modules}", module=False) for modules in IMPORTS}
        seconds["dvc repro, nothing to do"] = up_to_date
        common.write("fixed-costs-", settings, compute.configure(), {"seconds": seconds})
    print(f"| process | seconds, median of {RUNS} |\n|---|---:|")
    for name, value in seconds.items():
        print(f"| {name} | {value:.1f} |")


def _median(*command: str, module: bool) -> float:
    """Return the median seconds of a Python process that runs a module, or else code."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        result = subprocess.run(
            [sys.executable, "-m" if module else "-c", *command],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        times.append(time.perf_counter() - started)
        if result.returncode:
            raise UserError(f"{' '.join(command)} failed: {result.stderr}")
    return statistics.median(times)


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
