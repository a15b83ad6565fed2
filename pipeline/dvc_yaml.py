"""Read dvc.yaml: its stages in execution order, with all variables replaced."""

import heapq
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml with all variables replaced."""

    name: str
    module: str
    arguments: tuple[str, ...]
    deps: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...]
    in_git: tuple[str, ...]  # those of ``outs`` that DVC does not cache; its run cache cannot restore the stage then


def stages(document: Mapping[str, Any], path: str = "dvc.yaml") -> Iterator[Stage]:
    """Return the stages of ``path`` with the parameters ``document``, each after the stages that it depends on."""
    content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    unordered = list(_expand(content["stages"], document))
    blocked_by = upstream(unordered)
    blocks = defaultdict(list)
    for index, stage in enumerate(unordered):
        for name in blocked_by[stage.name]:
            blocks[name].append(index)
    ready = [index for index, stage in enumerate(unordered) if not blocked_by[stage.name]]  # a heap: in order
    while ready:
        stage = unordered[heapq.heappop(ready)]
        yield stage
        for index in blocks[stage.name]:
            blocked_by[unordered[index].name].remove(stage.name)
            if not blocked_by[unordered[index].name]:
                heapq.heappush(ready, index)


def upstream(stages: Iterable[Stage]) -> dict[str, set[str]]:
    """Return for each stage the names of the stages whose outputs it depends on."""
    stages = list(stages)
    writers: defaultdict[str, set[str]] = defaultdict(set)  # of each output, and of each folder that contains outputs
    for stage in stages:
        for out in map(PurePosixPath, stage.outs):
            for path in (out, *out.parents):
                writers[path.as_posix()].add(stage.name)
    return {stage.name: set().union(*(writers[dep] for dep in stage.deps if dep in writers)) for stage in stages}


def is_covered_by(out: str, deps: tuple[str, ...]) -> bool:
    """Return whether ``out`` is one of ``deps`` or inside one of them."""
    return any(out == dep or out.startswith(f"{dep}/") for dep in deps)


def _expand(entries: Mapping[str, Any], document: Mapping[str, Any]) -> Iterator[Stage]:
    for name, entry in entries.items():
        if "foreach" not in entry:
            yield _stage(name, entry, document)
            continue
        items = entry["foreach"]
        items = lookup(document, items[2:-1]) if isinstance(items, str) else items
        for key, item in items.items() if isinstance(items, Mapping) else zip(items, items, strict=True):
            yield _stage(f"{name}@{key}", entry["do"], {**document, "key": key, "item": item})


def _stage(name: str, entry: Mapping[str, Any], names: Mapping[str, Any]) -> Stage:
    def values(key: str) -> tuple[str, ...]:
        texts = [next(iter(item)) if isinstance(item, dict) else item for item in entry.get(key, ())]
        return tuple(_fill(text, names) for text in texts)

    _, _, module, *arguments = shlex.split(_fill(entry["cmd"], names))
    outs = values("outs") + values("metrics") + values("plots")
    options = [item for key in ("outs", "metrics", "plots") for item in entry.get(key, ()) if isinstance(item, dict)]
    uncached = [path for item in options for path, option in item.items() if not option.get("cache", True)]
    in_git = tuple(_fill(path, names) for path in uncached)
    return Stage(name, module, tuple(arguments), values("deps"), values("params"), outs, in_git)


def _fill(text: str, names: Mapping[str, Any]) -> str:
    """Replace every ``${a.b}`` with its value, formatted as DVC formats it."""

    def value(match: re.Match[str]) -> str:
        result = lookup(names, match[1])
        return str(result).lower() if isinstance(result, bool) else str(result)

    return re.sub(r"\$\{([^}]*)\}", value, text)


def lookup(names: Mapping[str, Any], dotted: str) -> Any:
    """Return the value at ``a.b`` in nested sections."""
    value: Any = names
    for key in dotted.split("."):
        value = value[key]
    return value
