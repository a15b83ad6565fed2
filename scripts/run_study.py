"""Run the selected study with `dvc repro`: first the linear probes, whose result is printed, then the trainings.

Each stage is one line, with the time left if it was estimated. From the first result on, report/STUDY/index.html shows
what has finished. After Ctrl-C, run the same command again: finished stages do not run again.
"""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing

from headstart import files, params
from headstart.console import UserError, run_cli
from headstart.results import page
from headstart.results.content import PartialData
from headstart.results.tables import percent
from pipeline.dvc_yaml import stages
from scripts import argument_parser, params_lock, time_estimate
from stages import collect

# What DVC prints for each stage, and hints that do not help here.
HIDDEN = re.compile(
    r"(> |Updating lock file|Generating lock file|To track the changes|\tgit add|To enable auto|\tdvc config"
    r"|Use `dvc push`|Data and pipelines are up to date|'.*' didn't change|$)"
)
RESULT_STAGES = ("probe", "audit", "evaluate@")  # stages whose results the page of a running study shows
PATIENCE_SECONDS = 30


class Progress:
    """The stages of a study that have started, and the time that the others will take."""

    def __init__(self, estimate: Mapping[str, float]) -> None:
        self._remaining = dict(estimate)
        self._total = sum(estimate.values())
        self._done = 0.0  # estimated seconds of the stages that ran
        self._started = time.perf_counter()
        self._running = ""

    def start(self, name: str, finished: Collection[str]) -> str:
        """Return the time left, as the end of a line about the stage ``name``, which starts now.

        Once a tenth of the work is done, the estimate is corrected by the time that it took.
        """
        self._done += self._remaining.pop(self._running, 0.0)
        self._running = name
        for stage in finished:
            self._remaining.pop(stage, None)
        if not self._remaining:
            return ""
        elapsed = time.perf_counter() - self._started
        factor = elapsed / self._done if self._done > 0.1 * self._total else 1.0
        return f", about {time_estimate.in_words(factor * sum(self._remaining.values()))} left"


def main(*arguments: str) -> None:
    argument_parser(__doc__).parse_args(arguments)
    with params_lock():
        run_selected_study()


def run_selected_study() -> None:
    """Run the study that params.yaml selects.

    Raises:
        UserError: a stage failed, or params.yaml changed meanwhile.
    """
    settings = params.read()
    n_stages = len(list(stages(params.read_yaml())))
    progress = Progress(time_estimate.read(settings.study))
    finished: set[str] = set()
    shown: set[str] = set()  # what the page has
    # DVC orders the stages of one call. With a call per configuration, each is evaluated as soon as it is trained.
    groups = [
        time_estimate.FIRST_STAGES,
        ["probe_pixels"],
        *([f"evaluate@{name}"] for name in settings.configurations),
        ["probe@random"],
        [],
    ]
    for group in groups:
        if params.read() != settings:
            raise UserError("params.yaml changed while the study ran. Run the same command again.")
        with closing(repro(group, finished)) as names:
            for name in names:
                results = {stage for stage in finished if stage.startswith(RESULT_STAGES)}
                if group and results > shown and finished.issuperset(time_estimate.FIRST_STAGES):
                    content = collect.collect_partial(settings, finished)
                    files.write_text(f"report/{settings.study}/index.html", page.render_partial_html(content))
                    if not shown:
                        print(_first_result(content), flush=True)
                    shown = results
                time_left = progress.start(name, finished)
                print(f"[{len(finished) + 1}/{n_stages}] {name}{time_left}", flush=True)


def repro(targets: Sequence[str], finished: set[str], *options: str) -> Generator[str]:
    """Run `dvc repro`, and yield the name of each stage that starts.

    Args:
        finished: gets the names of the stages that have finished or have not changed.
        options: of `dvc repro`.

    Raises:
        UserError: DVC failed. Its message has been printed.
    """
    process = subprocess.Popen(
        ["dvc", "repro", *options, *targets], stdout=subprocess.PIPE, text=True, errors="replace"
    )
    assert process.stdout is not None
    running: list[str] = []
    try:
        for line in process.stdout:
            if match := re.match(r"Running stage '(.*)':", line):
                finished.update(running)
                running = [match[1]]
                yield match[1]
            elif match := re.match(r"Stage '(.*)' (?:didn't change|is cached)", line):
                finished.update([*running, match[1]])
                running = []
            elif not HIDDEN.match(line):
                print(line, end="", flush=True)
    finally:
        _wait(process)
    if process.returncode:
        raise UserError("`dvc repro` failed: see the message above. Then run the same command again to resume.")
    finished.update(running)


def _wait(process: subprocess.Popen[str]) -> None:
    """Wait until DVC ends. After Ctrl-C it stops by itself, because it got the signal too; otherwise interrupt it."""
    try:
        process.communicate(timeout=PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.communicate()


def _first_result(content: PartialData) -> str:
    """Return the first result as text: the probes and the number of issues in the data."""
    lines = ["", f"First result, {content.test_images:,} test images:"]
    for name, (value, low, high) in content.ranked:
        lines.append(f"  {percent(value)}% (95% CI {percent(low)}–{percent(high)})  {name}")
    lines.append(f"  {percent(content.majority[1])}%  majority baseline (always {content.majority[0]})")
    if content.issues is not None:
        counts = {
            "near-duplicates": content.issues.counts["near_duplicates"],
            "test images with near-duplicates": len(content.issues.leaked),
            "label errors": content.issues.counts["label_errors"],
            "outliers": content.issues.counts["outliers"],
        }
        numbers = ", ".join(f"{name}: {n:,}" for name, n in counts.items())
        lines.append(f"Possible issues in the data: {numbers}. See report/{content.study_name}/index.html.")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
