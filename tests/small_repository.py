"""A repository with stages that take seconds, for tests of jobs and backends."""

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
STAGES = ("a", "b", "c")


def small_repository(folder: Path, seconds: float = 0) -> Path:
    """Create a repository with a remote and three stages, each of which takes ``seconds`` and writes 8 MB."""
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
    """Write and commit params.yaml and dvc.yaml."""
    (repository / "params.yaml").write_text("study: small\nstudies: {small: {dataset: none}}\n")
    definitions = {
        name: {"cmd": f"python -m work {name} {seconds}", "deps": ["work.py"], "outs": [f"out/{name}.safetensors"]}
        for name in STAGES
    }
    (repository / "dvc.yaml").write_text(yaml.safe_dump({"stages": definitions}))
    run("git", "add", "-A", cwd=repository)
    run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "small", cwd=repository)


def job_specs(repository: Path, scratch: Path, shared: Path) -> dict[str, JobSpec]:
    """Return the job of each stage at the last commit."""
    commit = run("git", "rev-parse", "HEAD", cwd=repository).stdout.strip()
    return {name: JobSpec(name, commit, str(repository), str(scratch), str(shared / "checkpoints")) for name in STAGES}


def processes_in(scratch: Path) -> list[psutil.Process]:
    """Return the processes whose working directory is in ``scratch``."""
    return [
        process
        for process in psutil.process_iter(["cwd", "cmdline"])
        if Path(process.info["cwd"] or "/").is_relative_to(scratch)
    ]


def stages_in(scratch: Path) -> list[str]:
    """Return the command lines of the processes in ``scratch``."""
    return [" ".join(process.info["cmdline"] or ()) for process in processes_in(scratch)]
