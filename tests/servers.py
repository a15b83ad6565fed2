"""Servers on the loopback that DVC's remotes can be on: OpenSSH, and rclone's server of the S3 protocol."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .slurm import free_ports

SSHD = Path("/usr/sbin/sshd")
BUCKET = "results"
KEY, SECRET = "headstart", "not-a-secret"


def missing(kind: str) -> str:
    """Why there can be no such server here; nothing if there can."""
    if kind == "ssh" and not (SSHD.exists() and os.geteuid() == 0):
        return "no sshd here, or not as root: sh scripts/install_cluster.sh"
    if kind == "s3" and shutil.which("rclone") is None:
        return "no rclone here: sh scripts/install_cluster.sh"
    return ""


@contextmanager
def folder(place: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A folder that all machines see."""
    yield str(place), {}


@contextmanager
def ssh(place: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """An sshd with a key of its own for whoever runs the tests.

    Yields:
        The address of a folder there, and what DVC has to know besides.
    """
    place.mkdir(parents=True)
    [port] = free_ports(1)
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / key)], check=True)
    (place / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {place}/host\nAuthorizedKeysFile {place}/user.pub\n"
        f"PidFile {place}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
        "Subsystem sftp internal-sftp\nMaxStartups 100\nMaxSessions 100\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)  # OpenSSH of Debian wants it
    options = {"port": str(port), "user": "root", "keyfile": str(place / "user"), "allow_agent": "false"}
    with _serving([str(SSHD), "-D", "-e", "-f", str(place / "config")], port, place / "log"):
        yield f"ssh://127.0.0.1{place}/remote", options


@contextmanager
def s3(place: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A bucket.

    Yields:
        Its address, and what DVC has to know besides.
    """
    (place / "buckets" / BUCKET).mkdir(parents=True)
    [port] = free_ports(1)
    options = {"endpointurl": f"http://127.0.0.1:{port}", "access_key_id": KEY, "secret_access_key": SECRET,
               "region": "us-east-1"}  # fmt: skip
    command = ["rclone", "serve", "s3", str(place / "buckets"), "--addr", f"127.0.0.1:{port}",
               "--auth-key", f"{KEY},{SECRET}", "--config", str(place / "none")]  # fmt: skip
    with _serving(command, port, place / "log"):
        yield f"s3://{BUCKET}/remote", options


@contextmanager
def _serving(command: list[str], port: int, log: Path) -> Iterator[None]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        for _ in range(100):
            with socket.socket() as connection:
                if not connection.connect_ex(("127.0.0.1", port)):
                    break
            if process.poll() is not None:
                break
            time.sleep(0.1)
        else:
            raise TimeoutError
        if process.poll() is not None:
            raise OSError(log.read_text(encoding="utf-8", errors="replace"))
        yield
    finally:
        process.terminate()
        process.wait()
