"""Run the study that params.yaml names without DVC: every stage of dvc.yaml in one process, in order.

    python -m stages

For machines that have PyTorch and no DVC, and to time a study without process starts. It makes the same bytes as
`dvc repro`. A stage is skipped if its outputs are as it left them and its settings, code, inputs, precision and weights
are the same; after an interruption the same command goes on. How long each stage took is printed.
"""

import gc
import hashlib
import importlib
import json
import re
import shlex
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from headstart import files, params
from headstart.console import UserError, run
from headstart.training import compute


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml with all its names filled in."""

    name: str
    module: str
    arguments: tuple[str, ...]
    deps: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...]


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
            _run(folder / settings.study / "stages.json")
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
        importlib.import_module(stage.module).main(*stage.arguments)
        gc.collect()  # the next stage begins with the memory that a process of its own would have
        if step not in plan():
            raise UserError(f"settings or code changed while {stage.name} ran: run the same command again")
        done[stage.name] = [step.made_from, _state(stage.outs)]
        files.write_json(memory, done)
        print(f"{time.perf_counter() - began:8.1f} s  {stage.name}", flush=True)
    print(f"{time.perf_counter() - started:8.1f} s  all")


def plan() -> list[Step]:
    """The stages in order, as settings, code and the environment are now."""
    document = params.load()
    settings = params.read()
    weights = Path(settings.current.weights)
    everywhere = [compute.choose().precision, files.sha256(weights) if weights.is_file() else ""]
    made_from: dict[str, str] = {}  # of every output
    steps = []
    for stage in stages(document):
        inputs = {out: sha256 for out, sha256 in made_from.items() if _inside(out, stage.deps)}
        ours = [dep for dep in stage.deps if not any(_inside(out, (dep,)) for out in inputs)]
        code = {path.as_posix(): _sha256(path, _stamp(path)) for path in files.sources(ours)}
        values = {name: lookup(document, name) for name in stage.params}
        text = json.dumps([stage.module, stage.arguments, values, code, inputs, everywhere], sort_keys=True)
        steps.append(Step(stage, hashlib.sha256(text.encode()).hexdigest()))
        made_from |= dict.fromkeys(stage.outs, steps[-1].made_from)
    return steps


def _state(outs: tuple[str, ...]) -> list[list[Any]]:
    """Size and time of every file of ``outs``: who else writes one is noticed."""
    paths = [path for out in outs for path in [Path(out), *sorted(Path(out).rglob("*"))] if path.is_file()]
    return [[path.as_posix(), *_stamp(path)] for path in paths]


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of a file, which change with its content."""
    return path.stat().st_size, path.stat().st_mtime_ns


@cache
def _sha256(path: Path, stamp: tuple[int, int]) -> str:
    """Of a file's content: pictures are many, and looked at before and after every stage."""
    return files.sha256(path)


def stages(document: Mapping[str, Any], path: str = "dvc.yaml") -> Iterator[Stage]:
    """The stages of ``path`` with the settings ``document``, in an order in which each finds what it needs."""
    waiting = list(_expand(yaml.safe_load(Path(path).read_text(encoding="utf-8"))["stages"], document))
    to_come = {out for stage in waiting for out in stage.outs}
    while waiting:
        stage = next(one for one in waiting if not any(_inside(out, one.deps) for out in to_come))
        waiting.remove(stage)
        to_come -= set(stage.outs)
        yield stage


def _inside(out: str, deps: tuple[str, ...]) -> bool:
    """Whether ``out`` is one of ``deps`` or in one of them."""
    return any(out == dep or out.startswith(f"{dep}/") for dep in deps)


def _expand(entries: Mapping[str, Any], document: Mapping[str, Any]) -> Iterator[Stage]:
    for name, entry in entries.items():
        if "foreach" not in entry:
            yield _stage(name, entry, document)
            continue
        items = entry["foreach"]
        for key, item in (lookup(document, items[2:-1]) if isinstance(items, str) else items).items():
            yield _stage(f"{name}@{key}", entry["do"], {**document, "key": key, "item": item})


def _stage(name: str, entry: Mapping[str, Any], names: Mapping[str, Any]) -> Stage:
    def filled(key: str) -> tuple[str, ...]:
        texts = [next(iter(each)) if isinstance(each, dict) else each for each in entry.get(key, ())]
        return tuple(_fill(text, names) for text in texts)

    _, _, module, *arguments = shlex.split(_fill(entry["cmd"], names))
    outs = filled("outs") + filled("metrics") + filled("plots")
    return Stage(name, module, tuple(arguments), filled("deps"), filled("params"), outs)


def _fill(text: str, names: Mapping[str, Any]) -> str:
    """Replace every ``${a.b}`` by its value, written as DVC writes it."""

    def value(match: re.Match[str]) -> str:
        found = lookup(names, match[1])
        return str(found).lower() if isinstance(found, bool) else str(found)

    return re.sub(r"\$\{([^}]*)\}", value, text)


def lookup(names: Mapping[str, Any], dotted: str) -> Any:
    """The value at ``a.b`` in nested sections."""
    found: Any = names
    for part in dotted.split("."):
        found = found[part]
    return found


if __name__ == "__main__":
    run(main)
