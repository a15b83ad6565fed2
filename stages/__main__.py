"""Run the selected study without DVC: see `pipeline/runner.py`."""

import sys

from headstart.console import run_cli
from pipeline.runner import main

if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
