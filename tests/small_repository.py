"""A repository with stages of seconds, for tests of specs and engines."""

from pathlib import Path

import psutil
import yaml

from cluster.job import JobSpec

from .conftest import run

WORK = """
import sys, time
import numpy as np
from headstart import files
from headstart.console import run_cli

def main(name, seconds):
    files.write_json(f"runs/small/{name}.json", {"seconds": float(seconds)})
    time.sleep(float(seconds))
    files.write_arrays(f"out/{name}.safetensors", {"x": np.zeros(1_000_000)})

run_cli(main, *sys.argv[1:])
"""
NAMES = ("a", "b", "c")


def small_repository(folder: Path, seconds: float = 0) -> Path:
    """A repository with a remote and three stages, each of which takes ``seconds`` and writes eight megabytes."""
    repository = folder / "small"
    repository.mkdir()
    run("git", "init", "-q", cwd=repository)
    run("dvc", "init", "-q", cwd=repository)
    run("dvc", "remote", "add", "-q", "--default", "shared", str(folder / "remote"), cwd=repository)
    (repository / "work.py").write_text(WORK)
    (repository / ".gitignore").write_text("/out/\n/runs/\n/checkpoints\n")
    write_stages(repository, seconds)
    return repository


def write_stages(repository: Path, seconds: float) -> None:
    (repository / "params.yaml").write_text("study: small\nstudies: {small: {dataset: none}}\n")
    named = {name: {"cmd": f"python -m work {name} {seconds}", "deps": ["work.py"],
                    "outs": [f"out/{name}.safetensors"]} for name in NAMES}  # fmt: skip
    (repository / "dvc.yaml").write_text(yaml.safe_dump({"stages": named}))
    run("git", "add", "-A", cwd=repository)
    run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "small", cwd=repository)


def specs(repository: Path, scratch: Path, shared: Path) -> dict[str, JobSpec]:
    commit = run("git", "rev-parse", "HEAD", cwd=repository).stdout.strip()
    return {name: JobSpec(name, commit, str(repository), str(scratch), str(shared / "checkpoints")) for name in NAMES}


def processes_in(scratch: Path) -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["cwd", "cmdline"])
            if Path(process.info["cwd"] or "/").is_relative_to(scratch)]  # fmt: skip


def stages_in(scratch: Path) -> list[str]:
    """The command lines of all processes there."""
    return [" ".join(process.info["cmdline"] or ()) for process in processes_in(scratch)]
