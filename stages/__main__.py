"""Run the study that params.yaml names without DVC: every stage of dvc.yaml in one process, in order.

    python -m stages

For machines that have PyTorch and no DVC, and to time a study without process starts. It makes the same bytes as
`dvc repro`. A stage is skipped if its outputs are there and were made with the same settings, code and inputs; after an
interruption the same command goes on. How long each stage took is printed.
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
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from headstart import files, params
from headstart.console import UserError, run


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml with all its names filled in."""

    name: str
    module: str
    arguments: tuple[str, ...]
    deps: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...]


def main() -> None:
    settings = params.read()
    memory = Path(f"checkpoints/{settings.scale}/stages.json")
    memory.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(memory.with_suffix(".lock"), timeout=0):
            _run(memory)
    except Timeout:
        raise UserError("another `python -m stages` runs here: wait for it, or stop it") from None


def _run(memory: Path) -> None:
    document = params.load("params.yaml")
    done = files.read_json(memory) if memory.exists() else {}
    fingerprints: dict[str, str] = {}  # of what makes each output
    started = time.perf_counter()
    for stage in stages(document):
        made_from = fingerprint(stage, document, fingerprints)
        fingerprints |= dict.fromkeys(stage.outs, made_from)
        if done.get(stage.name) == made_from and all(Path(out).exists() for out in stage.outs):
            print(f"{'':>10}  {stage.name}: as it was", flush=True)
            continue
        began = time.perf_counter()
        importlib.import_module(stage.module).main(*stage.arguments)
        gc.collect()  # the next stage begins with the memory that a process of its own would have
        done[stage.name] = made_from
        files.write_json(memory, done)
        print(f"{time.perf_counter() - began:8.1f} s  {stage.name}", flush=True)
    print(f"{time.perf_counter() - started:8.1f} s  all")


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
        for key, item in (_lookup(document, items[2:-1]) if isinstance(items, str) else items).items():
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
        found = _lookup(names, match[1])
        return str(found).lower() if isinstance(found, bool) else str(found)

    return re.sub(r"\$\{([^}]*)\}", value, text)


def _lookup(names: Mapping[str, Any], dotted: str) -> Any:
    found: Any = names
    for part in dotted.split("."):
        found = found[part]
    return found


def fingerprint(stage: Stage, document: Mapping[str, Any], fingerprints: Mapping[str, str]) -> str:
    """One SHA-256 of all that a stage's outputs depend on: its command, settings, code, and what made its inputs."""
    inputs = {out: made_from for out, made_from in fingerprints.items() if _inside(out, stage.deps)}
    made_here = {dep for dep in stage.deps if any(_inside(out, (dep,)) for out in inputs)}
    content = {dep: files.sha256(dep) for dep in stage.deps if dep not in made_here}
    values = {name: _lookup(document, name) for name in stage.params}
    text = json.dumps([stage.module, stage.arguments, values, content, inputs], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    run(main)
