"""Run the selected study without DVC: all stages of dvc.yaml in one process.

    python -m stages

Use it on machines that have PyTorch but not DVC, and to time a study without process starts. The outputs have the same
bytes as those of `dvc repro`. A stage is skipped if its outputs, settings, code, inputs, precision and weights have not
changed. After an interruption, run the same command to resume. The time of each stage is printed.
"""

import argparse
import gc
import hashlib
import importlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from headstart import files, params
from headstart.console import UserError
from headstart.training import compute, loading
from pipeline.dvc_yaml import Stage, is_covered_by, lookup, stages


@dataclass(frozen=True)
class PlannedStage:
    """A stage, and a SHA-256 of everything that its outputs depend on."""

    stage: Stage
    inputs_hash: str


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stages", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(arguments)
    settings = params.read()
    folder = Path("checkpoints")
    folder.mkdir(exist_ok=True)
    try:
        with FileLock(folder / "stages.lock", timeout=0):
            try:
                _run(folder / settings.study / "stages.json")
            finally:
                gc.unfreeze()  # else libraries report objects that were never freed
    except Timeout:
        raise UserError("another `python -m stages` runs in this folder. Wait until it ends, or stop it.") from None


def _run(state_file: Path) -> None:
    done = files.read_json(state_file) if state_file.exists() else {}
    started = time.perf_counter()
    for planned in plan():
        stage = planned.stage
        if done.get(stage.name) == [planned.inputs_hash, _state(stage.outs)]:
            print(f"{'':>10}  {stage.name}: up to date, skipped", flush=True)
            continue
        if done.pop(stage.name, None):  # else partial outputs would look up to date if the settings were reverted
            files.write_json(state_file, done)
        began = time.perf_counter()
        if stage.module != "stages.train":
            loading.clear_cache()
        importlib.import_module(stage.module).main(*stage.arguments)
        gc.collect()  # the next stage starts with the memory of a new process
        gc.freeze()  # the remaining half a million objects are modules: exclude them from the next collections
        if planned not in plan():
            raise UserError(f"settings or code changed while {stage.name} ran. Run the same command again.")
        done[stage.name] = [planned.inputs_hash, _state(stage.outs)]
        files.write_json(state_file, done)
        print(f"{time.perf_counter() - began:8.1f} s  {stage.name}", flush=True)
    print(f"{time.perf_counter() - started:8.1f} s  all")


def plan() -> list[PlannedStage]:
    """Return the stages in order, with the current settings, code and environment."""
    document = params.read_yaml()
    settings = params.read()
    weights = Path(settings.selected_study.weights)
    global_inputs = [compute.configure().precision, files.cached_sha256(weights) if weights.is_file() else ""]
    hashes: dict[str, str] = {}  # of the inputs of each output
    planned = []
    for stage in stages(document):
        given = {out: sha256 for out, sha256 in hashes.items() if is_covered_by(out, stage.deps)}
        source_deps = [dep for dep in stage.deps if not any(is_covered_by(out, (dep,)) for out in given)]
        code = {path.as_posix(): files.cached_sha256(path) for path in files.list_source_files(source_deps)}
        values = {name: lookup(document, name) for name in stage.params}
        text = json.dumps([stage.module, stage.arguments, values, code, given, global_inputs], sort_keys=True)
        planned.append(PlannedStage(stage, hashlib.sha256(text.encode()).hexdigest()))
        hashes |= dict.fromkeys(stage.outs, planned[-1].inputs_hash)
    return planned


def _state(outs: tuple[str, ...]) -> list[list[Any]]:
    """Return size and time of every file of ``outs``, to detect changes from outside."""
    paths = [path for out in outs for path in [Path(out), *sorted(Path(out).rglob("*"))] if path.is_file()]
    return [[path.as_posix(), *files.stat_signature(path)] for path in paths]
