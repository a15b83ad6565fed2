"""Compare the speed of `headstart.predict` with that of the network alone, as the stage `features` runs it.

    python -m benchmarks.predict models/quick/pretrained-finetuned-adam FOLDER

`predict` decodes the files, which the network alone does not. Both are timed in turn, and the medians are printed.
"""

import itertools
import statistics
import sys
import time
from pathlib import Path

import torch

from headstart import load
from headstart.console import UserError, run_cli
from headstart.data import scanning
from headstart.training.compute import configure
from headstart.training.inference import extract_features
from scripts import argument_parser


def main(*arguments: str) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("model", metavar="MODEL", type=Path, help="folder of a trained configuration")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="image files")
    parser.add_argument("--images", type=int, default=512, help="number of images (default: 512)")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each (default: 5)")
    options = parser.parse_args(arguments)
    paths, _ = scanning.find_images(options.folder)
    paths = list(itertools.islice(itertools.cycle(paths), options.images)) if paths else []
    if not paths:
        raise UserError(f"no images: {options.folder}. Give a folder with images.")
    compute = configure()
    classifier = load(options.model).to(compute.device)
    images = classifier.read(*paths)
    seconds: dict[str, list[float]] = {"network": [], "predict": []}
    for _ in range(options.repeats + 1):  # the first is not counted
        started = time.perf_counter()
        extract_features(images, (classifier.network,), compute=compute, prepare=classifier.preprocess)
        seconds["network"].append(time.perf_counter() - started)
        started = time.perf_counter()
        with compute.autocast(), torch.inference_mode():
            for _ in classifier.predict(paths):
                pass
        seconds["predict"].append(time.perf_counter() - started)
    speed = {name: len(paths) / statistics.median(values[1:]) for name, values in seconds.items()}
    print("| | images per second |\n|---|---:|")
    for name, value in speed.items():
        print(f"| {name} | {value:,.0f} |")
    print(f"\npredict has {speed['predict'] / speed['network']:.0%} of the speed of the network alone "
          f"({classifier.prepared_size} pixels, {len(paths):,} images, {compute.describe()['device']})")  # fmt: skip


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
