"""How the time and the memory of the expensive stages grow with the number of images and with their size.

    python -m benchmarks.growth [--study full] [--set KEY=VALUE]

Images ×1, ×2 and ×4, then, at ×1, image sizes ×1.5 and ×2. Each stage runs in a process of its own, so its seconds and
its peak memory include the start of Python, and the 10,000 test images. Prints a table and writes
benchmarks/results/growth-<device>-<study>.json.
"""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import settings as common
from headstart.console import UserError, run_cli
from headstart.training import compute

IMAGES = (1, 2, 4)
SIZES = (1.5, 2)
ROOT = Path.cwd()


def main(*arguments: str) -> None:
    settings = common.read(common.parser(__doc__).parse_args(arguments))
    name = next(name for name, configuration in settings.configurations.items() if configuration.finetuning)
    pretrained = str(settings.configurations[name].pretrained).lower()
    base = settings.selected_study
    changes: list[dict[str, Any]] = [{"training_images": factor * base.training_images} for factor in IMAGES]
    changes += [{"image_size": int(factor * base.image_size)} for factor in SIZES]
    rows = []
    print("| training images | image size | stage | seconds | peak RAM MB |\n|---:|---:|---|---:|---:|", flush=True)
    for change in changes:
        study = dataclasses.replace(base, **change)
        with common.workspace(dataclasses.replace(settings, studies={settings.study: study})):
            for stage in (["prepare"], ["initialize", pretrained], ["features", pretrained], ["train", name],
                          ["evaluate", name]):  # fmt: skip
                seconds, memory = _measured(*stage)
                rows.append({"training_images": study.training_images, "image_size": study.image_size,
                             "stage": " ".join(stage), "seconds": seconds, "peak_ram_mb": memory})  # fmt: skip
                print(f"| {study.training_images:,} | {study.image_size} | {' '.join(stage)} | {seconds:.1f} | "
                      f"{memory:,.0f} |", flush=True)  # fmt: skip
            common.write("growth-", settings, compute.configure(), {"stages": rows})


def _measured(stage: str, *arguments: str) -> tuple[float, float]:
    """Seconds and peak megabytes of RAM of a stage."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", f"stages.{stage}", *arguments], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise UserError(f"the stage {stage} failed: what it says stands above")
    return time.perf_counter() - started, usage.ru_maxrss / 1e3


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
