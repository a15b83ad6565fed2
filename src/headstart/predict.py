"""Classify new images with a trained network.

    python -m headstart.predict models/quick/pretrained-finetuned-adam photo.jpg folder 'more/*.png' --csv labels.csv

Images are files, folders, patterns such as 'more/*.png', and - for a list of paths on standard input, one per line.
Each image has one row: its path, then classes with their probabilities, the most probable first. Files that cannot be
read are listed at the end, and the exit status is 1.
"""

import argparse
import csv
import glob
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from headstart import files, load
from headstart.console import UserError, progress, run_cli
from headstart.data import scanning
from headstart.training.compute import configure

TOP = 3


class Inputs(NamedTuple):
    """The image files to classify, and the inputs that cannot be read, each with the reason."""

    images: list[Path]
    problems: dict[str, str]  # by name


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m headstart.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a trained configuration, or one of its model files")
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="files, folders, patterns, or - for standard input")
    parser.add_argument("--csv", metavar="FILE", help="write the rows to FILE instead of standard output")
    parser.add_argument("--top", metavar="K", type=int, default=TOP, help=f"classes per image (default: {TOP})")
    parser.add_argument("--seed", metavar="N", type=int, help="seed of the training (default: the smallest)")
    options = parser.parse_intermixed_args(arguments)
    if options.top < 1:
        raise UserError(f"--top must be at least 1. Got {options.top}.")
    inputs = find_inputs(_with_standard_input(options.images))
    if options.csv is not None:
        _require_output_file(options.csv, inputs.images)
    n_inputs, problems = len(inputs.images) + len(inputs.problems), dict(inputs.problems)
    if not n_inputs:
        raise UserError("no images: standard input is empty. Give at least one path.")
    if inputs.images:
        compute = configure()
        classifier = load(options.model, options.seed).to(compute.device)
        n_columns = min(options.top, len(classifier.classes))
        write_row: Callable[[Sequence[Any]], object] | None = None
        n_predicted = 0
        with (
            ExitStack() as stack,
            progress(len(inputs.images), "predicting") as bar,
            compute.autocast(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # of Pillow, on images that it can read
            for prediction in classifier.predict(inputs.images):
                bar.update()
                if prediction.problem:
                    problems[str(prediction.path)] = prediction.problem
                    continue
                if write_row is None:  # without any prediction, an existing file stays as it is
                    write_row = stack.enter_context(_open_rows(options.csv))
                    write_row(_columns(n_columns))
                ranked = islice(prediction.probabilities.items(), n_columns)
                n_predicted += 1
                write_row([prediction.path, *(cell for name, value in ranked for cell in (name, f"{value:.4f}"))])
        if options.csv is not None and n_predicted:
            print(f"{options.csv}: {n_predicted:,} image{'s' if n_predicted > 1 else ''}")
    if problems:
        lines = [f"{scanning.display_name(name)} {problem}" for name, problem in problems.items()]
        others = ". The others are predicted." if set(map(str, inputs.images)) - problems.keys() else ":"
        raise UserError(f"{len(problems):,} of {n_inputs:,} inputs cannot be read{others}", lines)


def find_inputs(arguments: Iterable[str]) -> Inputs:
    """Return the image files that ``arguments`` name, in their order."""
    images: list[Path] = []
    problems: dict[str, str] = {}
    for argument in arguments:
        if re.match(r"\w+://", argument):
            problems[argument] = "is a URL: download the image first"
            continue
        name = argument if os.path.exists(argument) else os.path.expanduser(argument)
        matches = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
        if not matches:
            problems[argument] = "does not exist"
        for path in map(Path, matches):
            if os.path.isdir(path):
                below, unreadable = scanning.find_images(path)
                images += below
                problems |= {str(file): problem for file, problem in unreadable.items()}
                if not below and not unreadable:
                    problems[str(path)] = "has no images"
            else:
                images.append(path)
    return Inputs(images, problems)


def _with_standard_input(arguments: Sequence[str]) -> Iterator[str]:
    """Yield ``arguments``, with the lines of standard input in place of "-"."""
    for argument in arguments:
        if argument == "-":
            if isinstance(sys.stdin, io.TextIOWrapper):
                sys.stdin.reconfigure(errors="surrogateescape")  # file names may have any bytes
            yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        else:
            yield argument


def _require_output_file(path: str, images: Sequence[Path]) -> None:
    """Raise UserError if ``path`` cannot be written, or is one of ``images``."""
    absolute = os.path.abspath(path)
    is_stream = absolute in ("/dev/stdout", "/dev/stderr") or absolute.startswith(("/dev/fd/", "/proc/"))
    if not path or is_stream or (os.path.exists(path) and not os.path.isfile(path)):
        raise UserError(f"--csv is not a file. Give the path of a file, or no --csv for standard output. Got {path!r}.")
    if os.path.realpath(path) in map(os.path.realpath, images):
        raise UserError(f"--csv is one of the images: {path}. Give the path of another file.")


@contextmanager
def _open_rows(path: str | None) -> Iterator[Callable[[Sequence[Any]], object]]:
    """Yield a function that writes a row of CSV to the file ``path``, or to standard output if it is None."""
    if path is None:
        yield csv.writer(sys.stdout, lineterminator="\n").writerow
        return
    with (
        files.atomic_write(os.path.realpath(path)) as tmp_path,  # the file that a link points to, not the link
        tmp_path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        yield csv.writer(file, lineterminator="\n").writerow


def _columns(n: int) -> list[str]:
    """Return the header: image, label, probability, label_2, probability_2, …"""
    suffixes = ["", *(f"_{rank}" for rank in range(2, n + 1))]
    return ["image", *(name + suffix for suffix in suffixes for name in ("label", "probability"))]


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
