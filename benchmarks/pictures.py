"""Measure the time and memory that the stage `prepare` needs to read folders of images.

    python -m benchmarks.pictures

The folders have 1,000 and 10,000 generated JPEGs, smooth noise of 1,280 × 960 pixels, all but ten in one class. They
are read in a separate process at two image sizes. The command prints a table and writes
benchmarks/results/pictures-<device>-<study>.json.
"""

import itertools
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
from scripts import argument_parser

COUNTS = (1_000, 10_000)
IMAGE_SIZES = (64, 224)
JPEG_SIZE = (1_280, 960)
N_FEW = 10  # images in the smaller class


def main(*arguments: str) -> None:
    argument_parser(__doc__).parse_args(arguments)
    settings, root = params.read(), Path.cwd()
    rows = []
    print("| images | image size | seconds | images per second | peak RAM MB | pixels MB |\n"
          "|---:|---:|---:|---:|---:|---:|")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        Path("data/raw").mkdir(parents=True)
        for first, n in itertools.pairwise((0, *COUNTS)):
            _write_images(range(first, n))
            for size in IMAGE_SIZES:
                document = params.read_yaml(root / "params.yaml")
                study = document["studies"][settings.study]
                study |= {"dataset": "noise", "image_size": size}
                study |= {"training_images": n * 6 // 10, "validation_images": n // 10, "test_images": None}
                study |= {"label_budgets": [], "probe_budgets": []}  # which may be larger than the training set
                document |= {"study": "noise", "studies": {"noise": study}}
                Path("params.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
                seconds, memory = _measure(root)
                row = {"pictures": n, "image_size": size, "seconds": round(seconds, 1), "peak_ram_mb": round(memory),
                       "images_mb": round(n * 3 * size**2 / 1e6)}  # fmt: skip
                rows.append(row)
                speed = n / row["seconds"]
                print(f"| {n:,} | {size} | {seconds:.1f} | {speed:,.0f} | {memory:,.0f} | {row['images_mb']:,} |",
                      flush=True)  # fmt: skip
    common.write("pictures-", settings, compute.configure(), {"stages": rows})


def _write_images(numbers: range) -> None:
    """Write JPEGs with these numbers, the first ``N_FEW`` in a separate class."""
    with progress(len(numbers), "writing images") as bar:
        for number in numbers:
            path = Path("data/pictures/noise", "few" if number < N_FEW else "many", f"{number:05d}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).integers(0, 256, (60, 80, 3), dtype=np.uint8)
            Image.fromarray(noise).resize(JPEG_SIZE, Image.Resampling.BICUBIC).save(path, quality=90)
            bar.update()


def _measure(root: Path) -> tuple[float, float]:
    """Return the seconds and the peak RAM, in MB, of `prepare`, sampled a hundred times per second.

    `wait4` is of no use here: if the parent's peak was larger, it reports that one.
    """
    started, peak = time.perf_counter(), 0
    process = psutil.Popen([sys.executable, "-m", "stages.prepare"], env={**os.environ, "PYTHONPATH": str(root)})
    while process.poll() is None:
        with suppress(psutil.Error):
            peak = max(peak, process.memory_info().rss)
        time.sleep(0.01)
    if process.returncode:
        raise UserError("the stage prepare failed: see its message above")
    return time.perf_counter() - started, peak / 1e6


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
