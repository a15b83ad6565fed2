"""What dvc.yaml says: its stages, in order, with all names filled in."""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml with all its names filled in."""

    name: str
    module: str
    arguments: tuple[str, ...]
    deps: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...]
    in_cache: bool  # all of them are in DVC's cache: then its run-cache can restore them


def stages(document: Mapping[str, Any], path: str = "dvc.yaml") -> Iterator[Stage]:
    """The stages of ``path`` with the settings ``document``, in an order in which each finds what it needs."""
    waiting = list(_expand(yaml.safe_load(Path(path).read_text(encoding="utf-8"))["stages"], document))
    pending_outs = {out for stage in waiting for out in stage.outs}
    while waiting:
        stage = next(one for one in waiting if not any(is_covered_by(out, one.deps) for out in pending_outs))
        waiting.remove(stage)
        pending_outs -= set(stage.outs)
        yield stage


def is_covered_by(out: str, deps: tuple[str, ...]) -> bool:
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
    options = [each for key in ("outs", "metrics", "plots") for each in entry.get(key, ()) if isinstance(each, dict)]
    in_cache = all(values.get("cache", True) for each in options for values in each.values())
    return Stage(name, module, tuple(arguments), filled("deps"), filled("params"), outs, in_cache)


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
