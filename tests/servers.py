"""Servers for DVC remotes on the loopback interface: OpenSSH, and rclone's S3 server."""

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
    """Return why such a server cannot run here; empty if it can."""
    if kind == "ssh" and not (SSHD.exists() and os.geteuid() == 0):
        return "sshd is not installed, or the tests do not run as root: sh scripts/install_cluster.sh"
    if kind == "s3" and shutil.which("rclone") is None:
        return "rclone is not installed: sh scripts/install_cluster.sh"
    return ""


@contextmanager
def ssh(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Start an SSH server with its own host key and user key.

    Yields:
        The address of a remote folder, and the options of the DVC remote.
    """
    folder.mkdir(parents=True)
    [port] = free_ports(1)
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        f"PidFile {folder}/pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
        "Subsystem sftp internal-sftp\nMaxStartups 100\nMaxSessions 100\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)  # Debian's OpenSSH requires it
    options = {"port": str(port), "user": "root", "keyfile": str(folder / "user"), "allow_agent": "false"}
    with _serving([str(SSHD), "-D", "-e", "-f", str(folder / "config")], port, folder / "log"):
        yield f"ssh://127.0.0.1{folder}/remote", options


@contextmanager
def s3(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Start an S3 server with a bucket.

    Yields:
        The address of a folder in the bucket, and the options of the DVC remote.
    """
    (folder / "buckets" / BUCKET).mkdir(parents=True)
    [port] = free_ports(1)
    options = {
        "endpointurl": f"http://127.0.0.1:{port}",
        "access_key_id": KEY,
        "secret_access_key": SECRET,
        "region": "us-east-1",
    }
    command = [
        *("rclone", "serve", "s3", str(folder / "buckets")),
        *("--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}", "--config", str(folder / "none")),
    ]
    with _serving(command, port, folder / "log"):
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
