"""Terminals and pipes of every kind: a message is shown, whatever they can show."""

import os
import subprocess
import sys

import pytest

from .conftest import ROOT

PROGRAM = """
import sys
from headstart.console import UserError, run_cli
def main():
    print("\\u00c4pfel \\u2192 \\udce4")
    if sys.argv[1:]:
        raise UserError("\\u00c4pfel \\u2192 \\udce4", ["a detail \\u2026"])
run_cli(main)
"""


def output(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, check=False)


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONUTF8": "1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0"},
    ],
)
def test_what_an_encoding_lacks_is_escaped(environment):
    done = output(**environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\udce4" in done.stdout
    refused = output("fail", **environment)
    assert refused.returncode == 1
    assert refused.stderr.startswith(b"headstart: ")
    assert len(refused.stderr.splitlines()) == 2


@pytest.mark.parametrize("command", ["scripts.table", "scripts.studies", "scripts.pictures --help"])
def test_commands_in_ascii(command):
    done = subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, check=False,
                          env=os.environ | {"PYTHONIOENCODING": "ascii"})  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()


def test_a_reader_that_has_enough_is_no_mistake():
    endless = "from headstart.console import run_cli; run_cli(lambda: [print('x' * 99) for _ in range(100_000)])"
    with subprocess.Popen([sys.executable, "-c", endless], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
