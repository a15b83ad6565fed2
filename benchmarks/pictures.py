"""How long folders of pictures take to read, and how much memory: 1,000 and 10,000 JPEGs, all but ten in one class.

    python -m benchmarks.pictures

The pictures are made for it, smooth noise of 1,280 × 960 pixels, and read by the stage `prepare` in a process of its
own at two image sizes. Prints a table, and writes benchmarks/results/pictures-<device>.json.
"""

import os
import sys
import tempfile
import time
from contextlib import chdir, suppress
from pathlib import Path

import numpy as np
import psutil
import yaml
from PIL import Image

from benchmarks import settings as common
from headstart import params
from headstart.console import UserError, progress, run_cli
from headstart.training import compute

NUMBERS = (1_000, 10_000)
SIZES = (64, 224)
SIZE = (1_280, 960)
FEW = 10  # in the other class


def main() -> None:
    settings, root = params.read(), Path.cwd()
    rows = []
    print("| pictures | image size | seconds | pictures a second | peak RAM MB | of it images MB |\n"
          "|---:|---:|---:|---:|---:|---:|")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        Path("data/raw").mkdir(parents=True)
        made = 0
        for n in NUMBERS:
            _make(range(made, n))
            made = n
            for size in SIZES:
                document = params.read_yaml(root / "params.yaml")
                study = document["studies"][settings.study]
                study |= {"dataset": "noise", "image_size": size}
                study |= {"training_images": n * 6 // 10, "validation_images": n // 10}
                document |= {"study": "noise", "studies": {"noise": study}}
                Path("params.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
                seconds, memory = _measured(root)
                row = {"pictures": n, "image_size": size, "seconds": round(seconds, 1), "peak_ram_mb": round(memory),
                       "images_mb": round(n * 3 * size**2 / 1e6)}  # fmt: skip
                rows.append(row)
                speed = n / row["seconds"]
                print(f"| {n:,} | {size} | {seconds:.1f} | {speed:,.0f} | {memory:,.0f} | {row['images_mb']:,} |",
                      flush=True)  # fmt: skip
    common.write("pictures-", settings, compute.configure(), {"stages": rows})


def _make(numbers: range) -> None:
    """JPEGs with these numbers, the first few in a class of their own."""
    with progress(len(numbers), "making pictures") as bar:
        for number in numbers:
            path = Path("data/pictures/noise", "few" if number < FEW else "many", f"{number:05d}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).integers(0, 256, (60, 80, 3), dtype=np.uint8)
            Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC).save(path, quality=90)
            bar.update()


def _measured(root: Path) -> tuple[float, float]:
    """Seconds and peak megabytes of RAM of `prepare`, looked at a hundred times a second.

    What the system tells of a process that has ended is the peak of the one that started it, if that was larger.
    """
    started, peak = time.perf_counter(), 0
    process = psutil.Popen([sys.executable, "-m", "stages.prepare"], env={**os.environ, "PYTHONPATH": str(root)})
    while process.poll() is None:
        with suppress(psutil.Error):
            peak = max(peak, process.memory_info().rss)
        time.sleep(0.01)
    if process.returncode:
        raise UserError("the stage prepare failed: what it says stands above")
    return time.perf_counter() - started, peak / 1e6


if __name__ == "__main__":
    run_cli(main)
