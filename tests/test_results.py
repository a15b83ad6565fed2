"""The committed results: what they promise, and that what is here now agrees with them."""

import json
import subprocess

import pytest

from benchmarks.speed import line
from headstart import params, report

from .conftest import ROOT

EXPERIMENTS = params.read(ROOT / "params.yaml").experiments


def committed(name: str) -> dict[str, float]:
    """A metrics file as git has it."""
    shown = subprocess.run(
        ["git", "show", f"HEAD:metrics/quick/{name}.json"], cwd=ROOT, capture_output=True, check=True
    )
    return json.loads(shown.stdout)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_fresh_run_agrees_with_the_committed_one(name):
    """After `make study` in a fresh clone the files are new; before it they are the committed ones."""
    now = json.loads((ROOT / f"metrics/quick/{name}.json").read_text(encoding="utf-8"))
    tolerance = 0.03 if name.startswith("scratch") else 0.01
    assert now.keys() == committed(name).keys()
    assert now["test_accuracy"] == pytest.approx(committed(name)["test_accuracy"], abs=tolerance)


def test_pretrained_weights_are_worth_eight_points_and_reach_88_percent():
    accuracy = {name: committed(name)["test_accuracy"] for name in EXPERIMENTS}
    assert accuracy["pretrained-finetuned-adam"] >= 0.88
    for name in EXPERIMENTS:
        if name.startswith("pretrained"):
            assert accuracy[name] - accuracy[name.replace("pretrained", "scratch")] >= 0.08, name


def test_the_readme_shows_the_committed_results():
    published: dict = {}
    rows = [
        report.Row(name=name, experiment=experiment, metrics=committed(name), run={}, published=published.get(name))
        for name, experiment in EXPERIMENTS.items()
    ]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for shown in report.markdown_table(rows).splitlines()[2:]:
        assert shown.removesuffix("– |") in readme


def test_the_docs_show_the_committed_benchmark():
    found = json.loads((ROOT / "benchmarks/results/2-cpu-cores-quick.json").read_text(encoding="utf-8"))
    docs = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    assert [row["configuration"] for row in found["configurations"]] == list(EXPERIMENTS)
    for row in found["configurations"]:
        assert line(row) in docs
    for way, ratio in found["times_as_fast_as"].items():
        assert f"{ratio:.1f} times as fast as the {way} loop" in docs
    for row in found["configurations"]:  # Headstart's side is the same study as the committed one
        assert row["headstart"]["test_accuracy"] == pytest.approx(
            committed(row["configuration"])["test_accuracy"], abs=0.0001
        )
