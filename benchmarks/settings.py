"""What the benchmarks have in common: settings of a study from the command line, and results with what made them."""

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
    made.add_argument("--study", help="a section of studies in params.yaml (default: the one that study names)")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the study")
    return made


def read(options: argparse.Namespace) -> params.Params:
    """``params.yaml`` with the study and the settings that the command line asks for.

    Raises:
        UserError: there is no such study or setting, or its value is impossible.
    """
    settings = params.read()
    name = options.study or settings.study
    if name not in settings.studies:
        raise UserError(f"--study {name!r} must be one of {', '.join(settings.studies)}")
    study = settings.studies[name]
    for change in options.set:
        key, _, text = change.partition("=")
        value = yaml.safe_load(text) if text else None
        changed: dict[str, Any] = {key: value}
        if type(value) is not type(getattr(study, key, None)):
            raise UserError(f"--set {change!r} is no setting of a study with a value of its kind")
        study = dataclasses.replace(study, **changed)
    return dataclasses.replace(settings, study=name, studies={name: study})


@contextmanager
def workspace(settings: params.Params) -> Iterator[None]:
    """Work in a new folder that has these settings and the raw data, so that stages run in it and disturb nothing."""
    raw, pictures, results = (Path(folder).resolve() for folder in ("data/raw", "data/pictures", "benchmarks/results"))
    if not raw.is_dir():
        raise UserError("data/raw is missing: run `dvc repro download`")
    content = dataclasses.asdict(settings)
    for configuration in content["configurations"].values():
        for key in [key for key, value in configuration.items() if value is None]:
            del configuration[key]
    for study in content["studies"].values():  # a path among the weights stays right from anywhere
        if Path(study["weights"]).exists():
            study["weights"] = str(Path(study["weights"]).resolve())
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        Path("params.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        Path("data").mkdir()
        Path("data/raw").symlink_to(raw)
        Path("data/pictures").symlink_to(pictures)
        Path("benchmarks").mkdir()
        Path("benchmarks/results").symlink_to(results)
        yield


def write(name: str, settings: params.Params, compute: Compute, found: dict[str, Any]) -> None:
    """Write what was ``found`` to ``benchmarks/results/<name><device>-<study>.json``, with what it was found with."""
    machine = compute.describe()
    device = re.sub(r"[^a-z0-9]+", "-", str(machine["device"]).lower())
    files.write_json(f"benchmarks/results/{name}{device}-{settings.study}.json", {
        **machine,
        **{package: version(package) for package in ("torchvision", "timm")},
        "cuda": torch.version.cuda if compute.device.type == "cuda" else None,
        "ended": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "study": settings.study,
        "settings": {**dataclasses.asdict(settings.selected_study), "weights": Path(settings.selected_study.weights).name},
        **found,
    })  # fmt: skip
