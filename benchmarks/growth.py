"""Measure how time and memory of the expensive stages grow with the number and the size of the images.

    python -m benchmarks.growth --study full

The number of training images is multiplied by 1, 2 and 4, and then the image size by 1.5 and 2. Each stage runs in a
separate process. Its seconds and its peak memory include the start of Python and the 10,000 test images. The command
prints a table and writes benchmarks/results/growth-<device>-<study>.json.
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

IMAGE_FACTORS = (1, 2, 4)
SIZE_FACTORS = (1.5, 2)
ROOT = Path.cwd()


def main(*arguments: str) -> None:
    options = common.parser(__doc__).parse_args(arguments)
    options.set = [*common.ALL_LABELS, *options.set]
    settings = common.read(options)
    name = next(name for name, configuration in settings.configurations.items() if configuration.finetuning)
    pretrained = str(settings.configurations[name].pretrained).lower()
    base = settings.selected_study
    changes: list[dict[str, Any]] = [{"training_images": factor * base.training_images} for factor in IMAGE_FACTORS]
    changes += [{"image_size": int(factor * base.image_size)} for factor in SIZE_FACTORS]
    rows = []
    print("| training images | image size | stage | seconds | peak RAM MB |\n|---:|---:|---|---:|---:|", flush=True)
    for change in changes:
        study = dataclasses.replace(base, **change)
        with common.workspace(dataclasses.replace(settings, studies={settings.study: study})):
            for stage in (["prepare"], ["initialize", pretrained], ["features", pretrained], ["train", name],
                          ["evaluate", name]):  # fmt: skip
                seconds, memory = _measure(*stage)
                rows.append({"training_images": study.training_images, "image_size": study.image_size,
                             "stage": " ".join(stage), "seconds": seconds, "peak_ram_mb": memory})  # fmt: skip
                print(f"| {study.training_images:,} | {study.image_size} | {' '.join(stage)} | {seconds:.1f} | "
                      f"{memory:,.0f} |", flush=True)  # fmt: skip
            common.write("growth-", settings, compute.configure(), {"stages": rows})


def _measure(stage: str, *arguments: str) -> tuple[float, float]:
    """Return the seconds and the peak RAM, in MB, of a stage."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", f"stages.{stage}", *arguments], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise UserError(f"the stage {stage} failed: see its message above")
    return time.perf_counter() - started, usage.ru_maxrss / 1e3


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
