"""Many linear heads at once beside one after the other, on random features.

    python -m benchmarks.heads [--heads 5 25 50] [--features 1280]

Each head has 100 to 1,600 of 3,200 rows and is trained for five epochs in batches of 32, as in trainings with some of
the labels. Both ways alternate in one run; shown is the median of three, in seconds, and how many times as fast the
heads are at once. Writes benchmarks/results/heads-<device>.json.
"""

import argparse
import dataclasses
import re
import statistics
import sys
import time

import torch

from headstart import files, params
from headstart.console import run
from headstart.network.models import Float32Linear
from headstart.params import Experiment, Study
from headstart.training import compute as computing
from headstart.training.compute import Compute
from headstart.training.forward import Examples, Kept
from headstart.training.heads import Head
from headstart.training.heads import fit as fit_heads
from headstart.training.loop import fit, make_optimizer

ROWS, SIZES, BATCH, STEPS, EPOCHS = 3_200, (100, 200, 400, 800, 1_600), 32, 25, 5


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, nargs="+", default=[5, 25, 50])
    parser.add_argument("--features", type=int, default=1_280)
    options = parser.parse_args(arguments)
    compute = computing.choose()
    torch.manual_seed(0)
    labels = torch.randint(0, 10, (ROWS,))
    examples = Examples(Kept.of(torch.randn(ROWS, options.features).relu(), compute), labels)
    settings = params.read()
    study = dataclasses.replace(settings.current, batch_size=BATCH, n_epochs=EPOCHS, patience=None)
    of_optimizer = {each.optimizer: each for each in settings.experiments.values() if not each.finetuning}
    rows = []
    print("| optimizer | heads | one after the other, s | at once, s | times as fast |", flush=True)
    print("|---|---:|---:|---:|---:|", flush=True)
    for optimizer, experiment in of_optimizer.items():
        for n in options.heads:
            seconds: dict[str, list[float]] = {"alone": [], "at_once": []}
            for _ in range(4):  # the first is for warming up
                for way, train in (("alone", _alone), ("at_once", _at_once)):
                    heads = _heads(n, options.features, compute)
                    started = time.perf_counter()
                    train(heads, examples, experiment, study, compute)
                    seconds[way].append(time.perf_counter() - started)
            alone, at_once = (statistics.median(each[1:]) for each in seconds.values())
            rows.append({"optimizer": optimizer, "heads": n, "alone": alone, "at_once": at_once})
            print(f"| {optimizer} | {n} | {alone:.2f} | {at_once:.2f} | {alone / at_once:.2f} |", flush=True)
    machine = compute.describe()
    device = re.sub(r"[^a-z0-9]+", "-", machine["device"].lower())
    files.write_json(f"benchmarks/results/heads-{device}.json", {**machine, "features": options.features, "rows": rows})


def _heads(n: int, features: int, compute: Compute) -> list[Head]:
    made = []
    for seed in range(n):
        size = SIZES[seed % len(SIZES)]
        chosen = torch.randperm(ROWS)
        layer = Float32Linear(features, 10).to(compute.device)
        passes = -(-STEPS // -(-size // BATCH))
        made.append(Head(layer, chosen[:size], chosen[size : size + size // 4], seed, passes, f"head {seed}"))
    return made


def _alone(heads: list[Head], examples: Examples, experiment: Experiment, study: Study, compute: Compute) -> None:
    for head in heads:
        sets = examples.subset(head.training), examples.subset(head.validation)
        list(fit(head.layer, make_optimizer(experiment, head.layer, compute), *sets, epochs=range(1, EPOCHS + 1),
                 batch_size=BATCH, seed=head.seed, compute=compute, passes=head.passes))  # fmt: skip


def _at_once(heads: list[Head], examples: Examples, experiment: Experiment, study: Study, compute: Compute) -> None:
    list(fit_heads(heads, examples, examples, experiment=experiment, study=study, compute=compute))


if __name__ == "__main__":
    run(main, *sys.argv[1:])
