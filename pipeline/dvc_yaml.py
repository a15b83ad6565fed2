"""Read dvc.yaml: its stages in execution order, with all variables replaced."""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
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
    in_cache: bool  # whether DVC caches all outputs, so its run cache can restore them


def stages(document: Mapping[str, Any], path: str = "dvc.yaml") -> Iterator[Stage]:
    """Return the stages of ``path`` with the parameters ``document``, each after the stages that it depends on."""
    remaining = list(_expand(yaml.safe_load(Path(path).read_text(encoding="utf-8"))["stages"], document))
    pending_outs = {out for stage in remaining for out in stage.outs}
    while remaining:
        stage = next(s for s in remaining if not any(is_covered_by(out, s.deps) for out in pending_outs))
        remaining.remove(stage)
        pending_outs -= set(stage.outs)
        yield stage


def is_covered_by(out: str, deps: tuple[str, ...]) -> bool:
    """Return whether ``out`` is one of ``deps`` or inside one of them."""
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
    def values(key: str) -> tuple[str, ...]:
        texts = [next(iter(item)) if isinstance(item, dict) else item for item in entry.get(key, ())]
        return tuple(_fill(text, names) for text in texts)

    _, _, module, *arguments = shlex.split(_fill(entry["cmd"], names))
    outs = values("outs") + values("metrics") + values("plots")
    options = [item for key in ("outs", "metrics", "plots") for item in entry.get(key, ()) if isinstance(item, dict)]
    in_cache = all(option.get("cache", True) for item in options for option in item.values())
    return Stage(name, module, tuple(arguments), values("deps"), values("params"), outs, in_cache)


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
