"""Fail where what is committed is not what the committed settings and code make.

    python -m scripts.lock_gate

For the study that params.yaml selects, `dvc repro` must have nothing to do, and dvc.lock has no stage that dvc.yaml
does not have. For every study with committed results, its record must be valid: params.yaml has the settings of the
study and of the configurations that the record contains, and the results are those of the record. Other configurations
in params.yaml do not matter. The check needs neither the data nor DVC's cache.
"""

import dataclasses
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from headstart import files, params
from headstart.console import UserError, run_cli
from headstart.params import Params
from pipeline.dvc_yaml import stages
from scripts import record
from stages.paths import stale_outputs_message


def main() -> None:
    settings = params.read()
    listed = subprocess.run(["git", "ls-files", "metrics/*/study.json"], capture_output=True, text=True, check=True)
    studies = [Path(line).parent.name for line in listed.stdout.splitlines()]
    for study in studies:
        check_record(study, settings)
    _check_lock()
    if message := stale_outputs_message(settings):
        raise UserError(message)
    print(
        f"dvc.lock fits the rest: nothing would run; params.yaml fits the records of {', '.join(studies) or 'no study'}"
    )


def check_record(study: str, settings: Params) -> None:
    """Raise UserError where the committed results of ``study`` were not made with ``settings``."""
    path = record.path(study)
    if study not in settings.studies:
        raise UserError(
            f"{path.parent} has results of a study that params.yaml does not have: put it back, or remove them"
        )
    remedy = f"run the study with `study: {study}` in params.yaml, then `make record`"
    if not path.is_file():
        raise UserError(f"{path} is missing: {remedy}")
    found = files.read_json(path)
    made_with = _flat({f"studies.{study}": found["settings"], "configurations": found["configurations"]})
    now = dataclasses.asdict(settings)
    selected_study = now["studies"][study]
    selected_study["weights"] = record.weights_name(selected_study["weights"])
    configurations = {name: values for name, values in now["configurations"].items() if name in found["configurations"]}
    has = _flat({f"studies.{study}": selected_study, "configurations": configurations})
    for key in made_with | has:
        if made_with.get(key) != has.get(key):
            raise UserError(f"the study {study} was made with {key} {made_with.get(key)}, and params.yaml has "
                            f"{has.get(key)}: set it back, or {remedy}")  # fmt: skip
    metrics = {f"metrics/{study}/{name}.json": "" for name in ("study", *found["configurations"])}
    for file, sha256 in {**metrics, **found["sha256"]}.items():
        if not Path(file).is_file() or files.sha256(file) != sha256:
            raise UserError(f"{file} is not what the record of the study {study} says: take both from git, or {remedy}")


def _flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names; a setting that is None or an empty list is none."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        elif value not in (None, [], ()):
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found


def _check_lock() -> None:
    """Raise UserError if `dvc repro` would run a stage, or if dvc.lock has a stage that does not exist.

    The exit status with --dry is 0 whether stages would run or not, so the check reads what DVC prints.
    """
    locked = yaml.safe_load(Path("dvc.lock").read_text(encoding="utf-8"))["stages"]
    if gone := sorted(locked.keys() - {stage.name for stage in stages(params.read_yaml())}):
        raise UserError(f"dvc.lock has stages that dvc.yaml does not have: remove them there ({', '.join(gone)})")
    command = ["dvc", "repro", "--allow-missing", "--dry"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    pending = re.findall(r"^Running stage '(.*)':", done.stdout, re.MULTILINE)
    # A stage that would run and has no data to run on is an error even so.
    pending += re.findall(r"failed to reproduce '(.*?)'", done.stderr)
    if pending:
        names = ", ".join(dict.fromkeys(pending))
        raise UserError(f"dvc.lock does not fit the rest, {names} would run: `dvc repro`, and commit what it changes")
    if done.returncode:
        raise UserError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")


if __name__ == "__main__":
    run_cli(main)
