"""Ray clusters that require a token, that are reached through a client, and whose head dies."""

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
# Connects to the address, then polls for ever and prints "polled" each time.
DRIVER = """
import sys, time
from dataclasses import replace
from headstart.console import run_cli
from cluster import ray, settings

ray.HEAD_GRACE_S = 3

def main(address):
    backend = ray.Backend(replace(settings.read(), ray=settings.Ray(address)))
    try:
        while True:
            backend.poll()
            print("polled", flush=True)
            time.sleep(0.2)
    finally:
        backend.close()

run_cli(main, *sys.argv[1:])
"""


@pytest.fixture
def start_head(tmp_path) -> Iterator[Callable[..., tuple[int, int]]]:
    """Return a function that starts a head with environment variables, and returns its port and its client port."""
    home = tmp_path / "home"
    home.mkdir()

    def start_head(**environment: str) -> tuple[int, int]:
        port, client_port = free_ports(2)
        options = {
            "port": port,
            "num-cpus": 1,
            "ray-client-server-port": client_port,
            "include-dashboard": "false",
            "min-worker-port": 0,
            "max-worker-port": 0,
        }
        subprocess.run(
            [
                str(Path(sys.executable).parent / "ray"),
                *("start", "--head", "--disable-usage-stats"),
                *(f"--{name}={value}" for name, value in options.items()),
            ],
            env={**os.environ, "HOME": str(home), **environment},
            check=True,
            capture_output=True,
        )
        return port, client_port

    yield start_head
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get("HOME") == str(home):
            with contextlib.suppress(psutil.Error):
                process.kill()


def start_driver(address: str, **environment: str) -> subprocess.Popen[str]:
    path = f"{ROOT}{os.pathsep}{ROOT / 'src'}"
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, address],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )


def test_a_missing_token_is_reported_in_one_line(start_head, tmp_path):
    """Ray creates the token on a machine by itself; without our handling the error is repeated twenty times."""
    token = tmp_path / "home/.ray/auth_token"
    token.parent.mkdir()
    token.write_text("0" * 64)
    port, _ = start_head()
    driver = start_driver(f"127.0.0.1:{port}", HOME=str(tmp_path), RAY_NUM_REDIS_GET_RETRIES="2")
    [line] = driver.communicate()[1].splitlines()
    assert line.startswith(f"headstart: cannot use Ray at 127.0.0.1:{port}: its head requires a token. Copy ")
    assert driver.returncode == 1
    driver = start_driver(f"127.0.0.1:{port}", HOME=str(tmp_path / "home"), RAY_AUTH_MODE="token")
    assert driver.stdout.readline() == "polled\n"
    driver.terminate()
    driver.communicate()


@pytest.mark.slow
def test_a_driver_and_a_client_report_a_dead_head_soon(start_head):
    port, client_port = start_head(RAY_AUTH_MODE="disabled")
    drivers = [start_driver(f"127.0.0.1:{port}"), start_driver(f"ray://127.0.0.1:{client_port}")]
    assert [driver.stdout.readline() for driver in drivers] == ["polled\n"] * 2
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        if f"={port}" in command or f"={client_port}" in command:
            process.kill()
    killed_at = time.monotonic()
    for driver in drivers:
        # Ray's client prints other lines.
        [line] = [line for line in driver.communicate()[1].splitlines() if line.startswith("headstart: ")]
        assert line.startswith("headstart: Ray's head does not respond: ")
        assert line.endswith(". Completed stages are cached. Run the same command again to resume.")
        assert driver.returncode == 1
    assert time.monotonic() - killed_at < 30
