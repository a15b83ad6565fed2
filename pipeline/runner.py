"""Run the study that params.yaml names without DVC: every stage of dvc.yaml in one process, in order.

    python -m stages

For machines that have PyTorch and no DVC, and to time a study without process starts. It makes the same bytes as
`dvc repro`. A stage is skipped if its outputs are as it left them and its settings, code, inputs, precision and weights
are the same; after an interruption, run the same command to continue. How long each stage took is printed.
"""

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
from headstart.console import UserError, run_cli
from headstart.training import compute
from pipeline.dvc_yaml import Stage, is_covered_by, lookup, stages
from stages import inputs


@dataclass(frozen=True)
class Step:
    """A stage, and one SHA-256 of all that its outputs depend on."""

    stage: Stage
    made_from: str


def main() -> None:
    settings = params.read()
    folder = Path("checkpoints")
    folder.mkdir(exist_ok=True)
    try:
        with FileLock(folder / "stages.lock", timeout=0):
            try:
                _run(folder / settings.study / "stages.json")
            finally:
                gc.unfreeze()  # else libraries complain at the end of objects that were never freed
    except Timeout:
        raise UserError("another `python -m stages` runs here: wait for it, or stop it") from None


def _run(memory: Path) -> None:
    done = files.read_json(memory) if memory.exists() else {}
    started = time.perf_counter()
    for step in plan():
        stage = step.stage
        if done.get(stage.name) == [step.made_from, _state(stage.outs)]:
            print(f"{'':>10}  {stage.name}: as it was", flush=True)
            continue
        if done.pop(stage.name, None):  # or what is half done now would pass for it if the settings went back
            files.write_json(memory, done)
        began = time.perf_counter()
        if stage.module != "stages.train":
            inputs.forget()
        importlib.import_module(stage.module).main(*stage.arguments)
        gc.collect()  # the next stage begins with the memory that a process of its own would have
        gc.freeze()  # what is left are modules, half a million objects: the next collection need not walk through them
        if step not in plan():
            raise UserError(f"settings or code changed while {stage.name} ran: run the same command again")
        done[stage.name] = [step.made_from, _state(stage.outs)]
        files.write_json(memory, done)
        print(f"{time.perf_counter() - began:8.1f} s  {stage.name}", flush=True)
    print(f"{time.perf_counter() - started:8.1f} s  all")


def plan() -> list[Step]:
    """The stages in order, as settings, code and the environment are now."""
    document = params.read_yaml()
    settings = params.read()
    weights = Path(settings.selected_study.weights)
    everywhere = [compute.configure().precision, files.cached_sha256(weights) if weights.is_file() else ""]
    made_from: dict[str, str] = {}  # of every output
    steps = []
    for stage in stages(document):
        given = {out: sha256 for out, sha256 in made_from.items() if is_covered_by(out, stage.deps)}
        ours = [dep for dep in stage.deps if not any(is_covered_by(out, (dep,)) for out in given)]
        code = {path.as_posix(): files.cached_sha256(path) for path in files.list_source_files(ours)}
        values = {name: lookup(document, name) for name in stage.params}
        text = json.dumps([stage.module, stage.arguments, values, code, given, everywhere], sort_keys=True)
        steps.append(Step(stage, hashlib.sha256(text.encode()).hexdigest()))
        made_from |= dict.fromkeys(stage.outs, steps[-1].made_from)
    return steps


def _state(outs: tuple[str, ...]) -> list[list[Any]]:
    """Size and time of every file of ``outs``: who else writes one is noticed."""
    paths = [path for out in outs for path in [Path(out), *sorted(Path(out).rglob("*"))] if path.is_file()]
    return [[path.as_posix(), *files.stat_signature(path)] for path in paths]


if __name__ == "__main__":
    run_cli(main)
