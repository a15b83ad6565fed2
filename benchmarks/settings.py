"""Shared by the benchmarks: settings of a study from the command line, and result files with their provenance."""

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
from scripts import argument_parser

ALL_LABELS = ("label_budgets=[]", "probe_budgets=[]")  # no subsets, which may be larger than a small training set


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the two options that choose the settings."""
    result = argument_parser(description)
    result.add_argument("--study", help="a section of studies in params.yaml (default: the selected study)")
    result.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the study; may be repeated"
    )
    return result


def read(options: argparse.Namespace) -> params.Params:
    """Return the settings in params.yaml, with the study and the changes that the command line gives.

    Raises:
        UserError: there is no such study or setting, or its value is invalid.
    """
    settings = params.read()
    name = options.study or settings.study
    if name not in settings.studies:
        raise UserError(f"--study: unknown study. Choose one of {', '.join(settings.studies)}. Got {name}.")
    changes = {key: yaml.safe_load(value) for key, _, value in (change.partition("=") for change in options.set)}
    study = params.validate({**vars(settings.studies[name]), **changes}, params.Study, {}, "--set")
    return dataclasses.replace(settings, study=name, studies={name: study})


@contextmanager
def workspace(settings: params.Params) -> Iterator[None]:
    """Change to a temporary folder with these settings and the raw data, so that stages do not touch the repository."""
    raw, pictures, results = (Path(folder).resolve() for folder in ("data/raw", "data/pictures", "benchmarks/results"))
    if not raw.is_dir():
        raise UserError("data/raw is missing: run `dvc repro download`")
    content = dataclasses.asdict(settings)
    content["configurations"] = {name: value.settings for name, value in settings.configurations.items()}
    for study in content["studies"].values():  # a relative path would be invalid in the temporary folder
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


def write(name: str, settings: params.Params, compute: Compute, results: dict[str, Any]) -> None:
    """Write ``results`` and their provenance to ``benchmarks/results/<name><device>-<study>.json``."""
    machine, study = compute.describe(), settings.selected_study
    device = re.sub(r"[^a-z0-9]+", "-", str(machine["device"]).lower())
    files.write_json(f"benchmarks/results/{name}{device}-{settings.study}.json", {
        **machine,
        **{package: version(package) for package in ("torchvision", "timm")},
        "cuda": torch.version.cuda if compute.device.type == "cuda" else None,
        "ended": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "study": settings.study,
        "settings": {**dataclasses.asdict(study), "weights": Path(study.weights).name},
        **results,
    })  # fmt: skip
