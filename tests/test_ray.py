"""Ray clusters that ask for a token, that are reached through a client, and whose head dies."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from . import ray_nodes
from .conftest import ROOT
from .slurm import free_ports

pytestmark = [pytest.mark.pipeline, pytest.mark.skipif(bool(ray_nodes.missing()), reason=ray_nodes.missing())]
# Prints what runs where, and goes on looking.
DRIVER = """
import sys, time
from dataclasses import replace
from headstart.console import run_cli
from cluster import ray, settings

ray.GONE = 3

def main(address):
    backend = ray.Backend(replace(settings.read(), ray=settings.Ray(address)))
    try:
        while True:
            backend.look()
            print("there", flush=True)
            time.sleep(0.2)
    finally:
        backend.close()

run_cli(main, *sys.argv[1:])
"""


@pytest.fixture
def head(tmp_path) -> Iterator[Callable[..., tuple[int, int]]]:
    """Starts a head with other variables of the environment; returns its port and that for clients."""
    home = tmp_path / "home"
    home.mkdir()

    def head(**environment: str) -> tuple[int, int]:
        port, clients = free_ports(2)
        subprocess.run(
            [Path(sys.executable).parent / "ray", "start", "--head", f"--port={port}", "--num-cpus=1",
             f"--ray-client-server-port={clients}", "--include-dashboard=false", "--disable-usage-stats",
             "--min-worker-port=0", "--max-worker-port=0"],
            env={**os.environ, "HOME": str(home), **environment}, check=True, capture_output=True,
        )  # fmt: skip
        return port, clients

    yield head
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get("HOME") == str(home):
            with contextlib.suppress(psutil.Error):
                process.kill()


def drive(address: str, **environment: str) -> subprocess.Popen[str]:
    path = f"{ROOT}{os.pathsep}{ROOT / 'src'}"
    return subprocess.Popen([sys.executable, "-c", DRIVER, address], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path, **environment})  # fmt: skip


def test_a_head_that_asks_for_a_token(head, tmp_path):
    """Ray makes it by itself as soon as it has been used on a machine; nothing is said twenty times."""
    token = tmp_path / "home/.ray/auth_token"
    token.parent.mkdir()
    token.write_text("0" * 64)
    port, _ = head()
    driver = drive(f"127.0.0.1:{port}", HOME=str(tmp_path), RAY_NUM_REDIS_GET_RETRIES="2")
    [line] = driver.communicate()[1].splitlines()
    assert line.startswith(f"headstart: Ray at 127.0.0.1:{port} cannot be used: it asks for a token: copy its head's ")
    assert driver.returncode == 1
    driver = drive(f"127.0.0.1:{port}", HOME=str(tmp_path / "home"), RAY_AUTH_MODE="token")
    assert driver.stdout.readline() == "there\n"
    driver.terminate()
    driver.communicate()


def test_a_client_and_a_head_that_dies(head):
    """Both say soon how to continue."""
    port, clients = head(RAY_AUTH_MODE="disabled")
    drivers = [drive(f"127.0.0.1:{port}"), drive(f"ray://127.0.0.1:{clients}")]
    assert [driver.stdout.readline() for driver in drivers] == ["there\n"] * 2
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        if f"={port}" in command or f"={clients}" in command:
            process.kill()
    began = time.monotonic()
    for driver in drivers:
        # Ray's client adds lines of its own.
        [line] = [line for line in driver.communicate()[1].splitlines() if line.startswith("headstart: ")]
        assert line.startswith("headstart: Ray's head does not answer any more: ")
        assert line.endswith("; what is complete stays: run the same command to continue")
        assert driver.returncode == 1
    assert time.monotonic() - began < 30
