"""Measure precision and recall of `headstart.results.audit` on issues that are planted in a folder of photographs.

    python -m benchmarks.audit ~/trashnet [--sizes 96,224] [--repeats 3]

In a copy of FOLDER (`train` and `test` with class folders), each repetition moves 20 training images to another class,
saves 20 test images as training images (recompressed, reduced, cropped or brightened), and adds 5 unrelated images to
training classes. The folder's own issues count as false alarms, so precision is a lower bound.
"""

import dataclasses
import gzip
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib.cbook
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from headstart import params
from headstart.console import UserError, run_cli
from headstart.data import decoding, scanning
from headstart.network import initial_weights, models
from headstart.network.splitting import split_model
from headstart.results import audit
from headstart.results.audit import Issues
from headstart.training.compute import configure
from headstart.training.inference import extract_features
from scripts import argument_parser

N_WRONG, N_COPIES = 20, 20
FASHION_MNIST_HEADER = 16  # bytes before the images of its files


class Planted(NamedTuple):
    """The planted issues, by path."""

    wrong: set[Path]
    copies: set[tuple[Path, Path]]  # copy and original
    unrelated: set[Path]


def main(*arguments: str) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="photographs in train/CLASS and test/CLASS")
    parser.add_argument("--sizes", default="96,224", help="image sizes, separated by commas (default: 96,224)")
    parser.add_argument("--repeats", type=int, default=3, help="repetitions with other issues (default: 3)")
    options = parser.parse_args(arguments)
    if not (options.folder / "train").is_dir() or not (options.folder / "test").is_dir():
        raise UserError(f"no train and test folders: {options.folder}. Give the path of a folder that has both.")
    print("| image size | issues | found | planted | recall | precision | precision of the first 20 |\n"
          "|---:|---|---:|---:|---:|---:|---:|")  # fmt: skip
    for size in map(int, options.sizes.split(",")):
        rows: dict[str, list[tuple[int, int, int, float]]] = {}
        for seed in range(options.repeats):
            with tempfile.TemporaryDirectory() as tmp_folder:
                copy = Path(tmp_folder) / "photographs"
                shutil.copytree(options.folder, copy)
                planted = plant(copy, seed)
                paths = sorted(file.path for file in scanning.scan(copy, follow_links=False).image_files)
                issues = find_issues(paths, copy, size)
            for kind, planted_set, found in compare(issues, paths, planted):
                hits = [item in planted_set for item in found]
                first = hits[:20]
                rows.setdefault(kind, []).append(
                    (len(found), len(planted_set), sum(hits), sum(first) / max(1, len(first)))
                )
        for kind, values in rows.items():
            n_found, n_planted, n_hits, first_precision = np.mean(values, axis=0)
            print(f"| {size} | {kind} | {n_found:.0f} | {n_planted:.0f} | {n_hits / n_planted:.0%} | "
                  f"{n_hits / max(n_found, 1):.0%} | {first_precision:.0%} |", flush=True)  # fmt: skip


def plant(folder: Path, seed: int) -> Planted:
    """Plant issues in ``folder``."""
    generator = random.Random(seed)
    training, test = (sorted((folder / split).glob("*/*.jpg")) for split in ("train", "test"))
    classes = sorted({path.parent.name for path in training})
    wrong = set()
    for path in generator.sample(training, N_WRONG):
        wrong_class = generator.choice([name for name in classes if name != path.parent.name])
        wrong.add(path.rename(folder / "train" / wrong_class / f"wrong-{path.name}"))
    copies = set()
    for number, original in enumerate(generator.sample(test, N_COPIES)):
        copy = folder / "train" / original.parent.name / f"copy-{original.name}"
        _change(Image.open(original).convert("RGB"), number % 4).save(copy, quality=60)
        copies.add((copy, original))
    unrelated = set()
    for number, image in enumerate(_unrelated_images(generator)):
        path = folder / "train" / generator.choice(classes) / f"unrelated-{number}.jpg"
        image.save(path, quality=90)
        unrelated.add(path)
    return Planted(wrong, copies, unrelated)


def _change(image: Image.Image, way: int) -> Image.Image:
    width, height = image.size
    if way == 1:
        return image.resize((width // 2, height // 2))
    if way == 2:
        return image.crop((width // 32, height // 32, width - width // 32, height - height // 32))
    if way == 3:
        return image.point(lambda value: value * 1.08 + 3)
    return image  # recompressed only


def _unrelated_images(generator: random.Random) -> Iterator[Image.Image]:
    """Yield two photographs of scikit-learn, one of Matplotlib, an image of Fashion-MNIST, and noise."""
    for photograph in load_sample_images().images:
        yield Image.fromarray(photograph)
    yield Image.open(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB")
    file = Path(params.read().dataset_dir).expanduser() / "fashion-mnist/t10k-images-idx3-ubyte.gz"
    pixels = np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=FASHION_MNIST_HEADER)
    yield Image.fromarray(pixels.reshape(-1, 28, 28)[generator.randrange(10_000)]).resize((300, 300)).convert("RGB")
    yield Image.fromarray(np.random.default_rng(generator.randrange(1_000)).integers(0, 256, (300, 400, 3), np.uint8))


def find_issues(paths: list[Path], folder: Path, size: int) -> Issues:
    """Return the issues as the stage `audit` finds them, with the network of `make pictures`."""
    images = np.stack([image for image in decoding.prepare_images(paths, size) if isinstance(image, np.ndarray)])
    classes = sorted({path.parent.name for path in paths})
    study = dataclasses.replace(
        params.read().studies["quick"], model_name=models.LITE0_MODEL, weights=initial_weights.DEFAULT, image_size=size
    )
    initial = initial_weights.build_initial_model(
        study, seed=0, images=None, classes=tuple(classes), prepared_size=size
    )
    network, _ = split_model(initial.build(), [initial.classifier])
    [features] = extract_features(
        torch.from_numpy(images), (network,), compute=configure(), prepare=initial.preprocess, label="features"
    )
    labels = np.array([classes.index(path.parent.name) for path in paths])
    is_test = np.array([path.relative_to(folder).parts[0] == "test" for path in paths])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return audit.find_issues(images, features.flatten(1).float().numpy(), labels, is_test)


def compare(issues: Issues, paths: list[Path], planted: Planted) -> Iterator[tuple[str, set, list]]:
    """Yield each kind of issue with what was planted and what was found, the strongest first."""
    pairs = [(paths[pair.first], paths[pair.second]) for pair in issues.near_duplicates]
    originals = {frozenset(pair) for pair in planted.copies}
    yield "near-duplicates", originals, [frozenset(pair) for pair in pairs]
    yield "label errors", planted.wrong, [paths[error.image] for error in issues.label_errors]
    yield "outliers", planted.unrelated, [paths[outlier.image] for outlier in issues.outliers]


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
