"""Which modules of this repository a file imports, read from its source."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent


def module_file(module: str) -> Path | None:
    """The file of ``headstart.x.y`` or ``stages.x``, relative to the root; None for what is not ours."""
    folder, _, name = module.partition(".")
    base = {"headstart": Path("src/headstart"), "stages": Path("stages"), "pipeline": Path("pipeline")}.get(folder)
    file = base / f"{name.replace('.', '/')}.py" if base and name else None
    return file if file and (ROOT / file).exists() else None


def closure(file: Path) -> set[Path]:
    """``file`` and all files of ours that it imports, directly or not."""
    found: set[Path] = set()
    waiting = [file]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            waiting += [found for found in map(module_file, modules) if found]
    return found
