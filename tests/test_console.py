"""Messages on terminals and pipes of every encoding."""

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


def run_program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
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
def test_characters_outside_the_encoding_are_escaped(environment):
    success = run_program(**environment)
    assert (success.returncode, success.stderr) == (0, b"")
    assert b"\\udce4" in success.stdout
    failure = run_program("fail", **environment)
    assert failure.returncode == 1
    assert failure.stderr.startswith(b"headstart: ")
    assert len(failure.stderr.splitlines()) == 2


@pytest.mark.parametrize("command", ["scripts.table", "scripts.studies", "scripts.pictures --help"])
def test_commands_print_ascii_if_the_encoding_is_ascii(command):
    result = subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, check=False,
                            env=os.environ | {"PYTHONIOENCODING": "ascii"})  # fmt: skip
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.isascii()


def test_a_closed_pipe_is_not_an_error():
    endless = "from headstart.console import run_cli; run_cli(lambda: [print('x' * 99) for _ in range(100_000)])"
    with subprocess.Popen([sys.executable, "-c", endless], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
