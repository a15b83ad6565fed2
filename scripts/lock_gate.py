"""Check that dvc.lock and the committed results match the code and params.yaml.

For the study that params.yaml selects, `dvc repro` must have nothing to do, and dvc.lock must not contain stages that
dvc.yaml does not define. For every study with committed results, the record must be valid: params.yaml has the same
settings for the study and for the configurations in the record, and the files have the hashes in the record.
Configurations that only params.yaml or only the record has do not matter: the record describes its own, and
`make select STUDY=…` restores them. The check needs neither the data nor DVC's cache.
"""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from headstart import files, params
from headstart.console import UserError, run_cli
from headstart.params import Params
from pipeline.dvc_yaml import stages
from scripts import argument_parser, record
from stages.paths import stale_outputs_message

NETWORK_STAGES = ("probe_network@", "finetune_network@")


def main(*arguments: str) -> None:
    argument_parser(__doc__).parse_args(arguments)
    settings = params.read()
    result = subprocess.run(["git", "ls-files", "metrics/*/study.json"], capture_output=True, text=True, check=True)
    studies = [Path(line).parent.name for line in result.stdout.splitlines()]
    for study in studies:
        check_record(study, settings)
    _check_lock()
    if message := stale_outputs_message(settings):
        raise UserError(message)
    print(f"OK: dvc.lock is up to date, and params.yaml matches the records of {', '.join(studies) or 'no study'}.")


def check_record(study: str, settings: Params) -> None:
    """Raise UserError if the committed results of ``study`` were not made with ``settings``."""
    path = record.path(study)
    if study not in settings.studies:
        raise UserError(f"results without a study: {path.parent} has results, but params.yaml has no study {study}. "
                        "Restore the study, or delete the results.")  # fmt: skip
    remedy = f"set `study: {study}` in params.yaml, run `dvc repro`, and run `make record`"
    if not path.is_file():
        raise UserError(f"missing record: {path}. To create it, {remedy}.")
    content = files.read_json(path)
    selected_study = dataclasses.asdict(settings.studies[study])
    selected_study["weights"] = record.weights_name(selected_study["weights"])
    names = settings.configurations.keys() & content["configurations"].keys()
    recorded = _flatten(
        {
            f"studies.{study}": content["settings"],
            "configurations": {name: content["configurations"][name] for name in names},
        }
    )
    current = _flatten(
        {
            f"studies.{study}": selected_study,
            "configurations": {name: settings.configurations[name].settings for name in names},
        }
    )
    for key in recorded | current:
        if recorded.get(key) != current.get(key):
            raise UserError(f"{key} differs from the record of the study {study}. Restore it in params.yaml, or "
                            f"{remedy}. Got {current.get(key)} instead of {recorded.get(key)}.")  # fmt: skip
    hashes = dict.fromkeys((f"metrics/{study}/{name}.json" for name in ("study", *content["configurations"])), "")
    for file, sha256 in {**hashes, **content["sha256"]}.items():
        if not Path(file).is_file() or files.sha256(file) != sha256:
            raise UserError(
                f"{file} does not match the record of the study {study}. Restore both from git, or {remedy}."
            )


def _flatten(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted names, without those that are None or empty."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        elif value not in (None, [], ()):
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def _check_lock() -> None:
    """Raise UserError if `dvc repro` would run a stage, or if dvc.lock has a stage that dvc.yaml does not define.

    The stages of earlier comparisons of networks may stay in dvc.lock.

    The exit status with --dry is 0 whether stages would run or not, so the check reads what DVC prints.
    """
    locked = yaml.safe_load(Path("dvc.lock").read_text(encoding="utf-8"))["stages"]
    known = {stage.name for stage in stages(params.read_yaml())}
    if stale := sorted(name for name in locked.keys() - known if not name.startswith(NETWORK_STAGES)):
        raise UserError(f"dvc.lock has stages that dvc.yaml does not define. Remove them from dvc.lock. Got "
                        f"{', '.join(stale)}.")  # fmt: skip
    command = ["dvc", "repro", "--allow-missing", "--dry"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    pending = re.findall(r"^Running stage '(.*)':", result.stdout, re.MULTILINE)
    pending += re.findall(r"failed to reproduce '(.*?)'", result.stderr)  # stages that would run, without their data
    if pending:
        names = ", ".join(dict.fromkeys(pending))
        raise UserError(f"dvc.lock is out of date: `dvc repro` would run {names}. Run it, and commit the changes.")
    if result.returncode:
        raise UserError(f"`{' '.join(command)}` failed: {result.stderr.strip()}")


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
