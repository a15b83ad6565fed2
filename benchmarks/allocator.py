"""Compare forward passes on a CPU whose freed memory stays in the heap with passes whose memory returns to the system.

    python -m benchmarks.allocator [--network tf_efficientnet_lite0] [--sizes 64,128,224]

`headstart.training.compute` changes two settings of glibc. The table has the milliseconds per image with glibc's
defaults and with these settings, each the median over batches in a process of its own, and the peak memory. The two
kinds of processes alternate.
"""

import json
import resource
import statistics
import subprocess
import sys
import time

import torch

from headstart.console import run_cli
from headstart.network import models
from headstart.training import compute
from scripts import argument_parser

REPEATS = 3
WARM_UP, BATCHES = 3, 6


def main(*arguments: str) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--network", default=models.LITE0_MODEL)
    parser.add_argument("--sizes", default="64,128,224", help="image sizes, separated by commas (default: 64,128,224)")
    parser.add_argument("--child", choices=["heap", "system"], help="internal: time one kind of process")
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(_time(options.network, int(options.sizes), options.child)))
        return
    print("| image size | default, ms per image | Headstart | times as fast | default, peak MB | Headstart |\n"
          "|---:|---:|---:|---:|---:|---:|")  # fmt: skip
    for size in options.sizes.split(","):
        runs: dict[str, list[list[float]]] = {"system": [], "heap": []}
        for _ in range(REPEATS):
            for kind, results in runs.items():
                command = (sys.executable, "-m", "benchmarks.allocator", "--network", options.network, "--sizes", size,
                           "--child", kind)  # fmt: skip
                results.append(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
        system, heap = (
            [statistics.median(values) for values in zip(*results, strict=True)] for results in runs.values()
        )
        print(f"| {size} | {system[0]:.1f} | {heap[0]:.1f} | {system[0] / heap[0]:.1f} | {system[1]:,.0f} "
              f"| {heap[1]:,.0f} |", flush=True)  # fmt: skip


@torch.no_grad()
def _time(network_name: str, size: int, kind: str) -> tuple[float, float]:
    """Return the milliseconds per image of a forward pass, and the peak memory in MB."""
    if kind == "system":
        compute._keep_freed_memory = lambda: None
    device = compute.configure("cpu")
    network = models.build(network_name, 10, size).eval().to(memory_format=torch.channels_last)
    images = torch.randn(device.inference_batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)
    seconds = []
    for _ in range(WARM_UP + BATCHES):
        started = time.perf_counter()
        network(images)
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1_024 / 1e6
    return 1_000 * statistics.median(seconds[WARM_UP:]) / len(images), peak


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
