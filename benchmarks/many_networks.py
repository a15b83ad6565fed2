"""Measure what grows with the number of compared networks: DVC, the plan, the statistics and the page.

    python -m benchmarks.many_networks [--counts 10 100 1000]

Nothing is trained. DVC is timed in a temporary clone whose params.yaml lists that many networks. The time of `dvc
status` for one network is DVC's overhead in each job of a cluster, without its data. The time for all networks is the
overhead on the machine that starts the jobs.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from headstart import params
from headstart.results import figures, networks, page
from headstart.results.networks import NetworkResult, NetworksData
from pipeline.dvc_yaml import stages

ROOT = Path(__file__).parent.parent
TEST_IMAGES = 1_000


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _plan(document: dict[str, Any]) -> None:
    list(stages(document, str(ROOT / "dvc.yaml")))


def results(n: int) -> list[NetworkResult]:
    """Return networks with random predictions."""
    generator = np.random.default_rng(0)
    return [
        NetworkResult(
            name=f"network-{index}",
            weights="weights",
            sha256="0" * 64,
            license="mit",
            parameters=10**7,
            macs=10**9,
            memory=10**8,
            milliseconds=float(generator.uniform(1, 100)),
            device="CPU",
            label_budgets=(100, 1_000),
            cross_validated_accuracy=0.5,
            correct=generator.random((2, 1, TEST_IMAGES)) < generator.uniform(0.5, 0.95),
        )
        for index in range(n)
    ]


def measure(n: int) -> dict[str, float]:
    """Return the seconds of each part with ``n`` networks, and the size of the page in bytes."""
    document = params.read_yaml(ROOT / "params.yaml")
    document["networks"] = {f"network-{i}": {"model_name": f"network{i}", "weights": "default"} for i in range(n)}
    measured = {"plan": seconds(partial(_plan, document))}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), folder], check=True)
        (Path(folder) / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        for name, target in (("DVC, one network", "probe_network@network-0"), ("DVC, all", "probe_network")):
            command = [sys.executable, "-m", "dvc", "status", "--quiet", target]
            measured[name] = seconds(partial(subprocess.run, command, cwd=folder, check=False))  # 1: stages would run
    values = results(n)
    measured["statistics"] = seconds(lambda: networks.compare(values))
    ranking = networks.compare(values)
    content = NetworksData(
        study_name="many", study=params.read(ROOT / "params.yaml").selected_study, dataset="images", classes=("a", "b"),
        n_test=TEST_IMAGES, ranking=ranking, left_out={}, batch_size=64, majority=("a", 0.5),
    )  # fmt: skip
    started = time.perf_counter()
    html = page.render_networks_html(content, figures.as_svg(figures.networks, ranking))
    return measured | {"page (s)": time.perf_counter() - started, "page (bytes)": len(html.encode())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 100, 1_000])
    for n in parser.parse_args().counts:
        print(f"{n:,} networks: " + ", ".join(f"{name} {value:,.2f}" for name, value in measure(n).items()), flush=True)


if __name__ == "__main__":
    main()
