"""Fail where `dvc repro` would run anything: what is committed is then not what the committed settings and code make.

    python -m scripts.lock_gate

It needs neither the data nor DVC's cache. The exit status of `dvc repro --dry` is 0 whether it would run stages or not,
so what it prints is read.
"""

import re
import subprocess

from headstart.console import UserError, run


def main() -> None:
    command = ["dvc", "repro", "--allow-missing", "--dry"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    stages = re.findall(r"^Running stage '(.*)':", done.stdout, re.MULTILINE)
    # A stage that would run and has no data to run on is an error even so.
    stages += re.findall(r"failed to reproduce '(.*?)'", done.stderr)
    if stages:
        names = ", ".join(dict.fromkeys(stages))
        raise UserError(f"dvc.lock does not fit the rest, {names} would run: `dvc repro`, and commit what it changes")
    if done.returncode:
        raise UserError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
    print("dvc.lock fits the rest: nothing would run")


if __name__ == "__main__":
    run(main)
