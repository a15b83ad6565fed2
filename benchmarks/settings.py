"""What the benchmarks have in common: settings of a scale from the command line, and results with what made them."""

import argparse
import dataclasses
import datetime
import re
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from headstart import files, params
from headstart.console import UserError
from headstart.training.compute import Compute


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the two options that choose the settings."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--scale", help="a section of scales in params.yaml (default: the one that scale names)")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the scale")
    return made


def read(options: argparse.Namespace) -> params.Params:
    """``params.yaml`` with the scale and the settings that the command line asks for.

    Raises:
        UserError: there is no such scale or setting, or its value is impossible.
    """
    settings = params.read()
    name = options.scale or settings.scale
    if name not in settings.scales:
        raise UserError(f"--scale {name!r} must be one of {', '.join(settings.scales)}")
    scale = settings.scales[name]
    for change in options.set:
        key, _, text = change.partition("=")
        value = yaml.safe_load(text) if text else None
        changed: dict[str, Any] = {key: value}
        if type(value) is not type(getattr(scale, key, None)):
            raise UserError(f"--set {change!r} is no setting of a scale with a value of its kind")
        scale = dataclasses.replace(scale, **changed)
    return dataclasses.replace(settings, scale=name, scales={name: scale})


@contextmanager
def workspace(settings: params.Params) -> Iterator[None]:
    """Work in a new folder that has these settings and the raw data, so that stages run in it and disturb nothing."""
    raw, results = Path("data/raw").resolve(), Path("benchmarks/results").resolve()
    if not raw.is_dir():
        raise UserError("data/raw is missing: run `dvc repro download`")
    content = dataclasses.asdict(settings)
    for experiment in content["experiments"].values():
        for key in [key for key, value in experiment.items() if value is None]:
            del experiment[key]
    for scale in content["scales"].values():  # a path among the weights stays right from anywhere
        if Path(scale["weights"]).exists():
            scale["weights"] = str(Path(scale["weights"]).resolve())
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        Path("params.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        Path("data").mkdir()
        Path("data/raw").symlink_to(raw)
        Path("benchmarks").mkdir()
        Path("benchmarks/results").symlink_to(results)
        yield


def write(name: str, settings: params.Params, compute: Compute, found: dict[str, Any]) -> None:
    """Write what was ``found`` to ``benchmarks/results/<name><device>-<scale>.json``, with what it was found with."""
    machine = compute.describe()
    device = re.sub(r"[^a-z0-9]+", "-", str(machine["device"]).lower())
    files.write_json(f"benchmarks/results/{name}{device}-{settings.scale}.json", {
        **machine,
        **{package: version(package) for package in ("torchvision", "timm")},
        "cuda": torch.version.cuda if compute.device.type == "cuda" else None,
        "ended": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "scale": settings.scale,
        "settings": {**dataclasses.asdict(settings.current), "weights": Path(settings.current.weights).name},
        **found,
    })  # fmt: skip
