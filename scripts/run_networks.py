"""Compare the networks that params.yaml lists, on the images of the selected study: table, figure and page.

    python -m scripts.run_networks [--finetune K]

Each network has its own stage of DVC, `probe_network@NAME`, so only new networks are computed. With `--finetune`, the K
networks with the highest cross-validated accuracy are also fine-tuned. After Ctrl-C, run the same command again.
"""

import dataclasses
import sys
from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from headstart import files, params, run_info
from headstart.console import UserError, run_cli
from headstart.data import registry, splits
from headstart.params import Params
from headstart.results import evaluation, figures, networks, page
from headstart.results.comparison import Estimate
from headstart.results.networks import NetworkComparison, NetworkResult, NetworksData
from headstart.results.tables import percent, points
from pipeline.provenance import run_file
from scripts import argument_parser, params_lock, record, time_estimate
from scripts import pictures as own_pictures
from scripts.networks import check_finetune, left_out_file
from scripts.run_study import Progress, repro
from stages.paths import finetuned_folder, network_file, network_probes_file, prepared_file

BATCH_SIZE = 64  # images; memory is reported for such a batch
PROBE, FINETUNE = "probe_network", "finetune_network"  # stages of dvc.yaml
FAILED = "its stage failed: see the messages of `make networks`"


def main(*arguments: str) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--finetune", default="", metavar="K", help="also fine-tune the best K networks")
    options = parser.parse_args(arguments)
    with params_lock():
        settings = params.read()
        n_finetuned = check_finetune(options.finetune, len(settings.networks))
        # Check the recipe before the probes run.
        params.validate(
            {**vars(settings), "finetuned_networks": list(settings.networks)[:n_finetuned]},
            params.Params, params.SECTIONS, "params.yaml",
        )  # fmt: skip
        finished, error = _run(PROBE, settings)
        results = read_results(settings, finished)
        if n_finetuned and results:
            settings = _choose_finetuned(settings, results, n_finetuned)
            finetuned, finetuning_error = _run(FINETUNE, settings)
            results, error = read_results(settings, {*finished, *finetuned}), error or finetuning_error
        if results:
            _show(settings, results)
        if error is not None:
            raise error


def _choose_finetuned(settings: Params, results: list[NetworkResult], n_finetuned: int) -> Params:
    """Write the networks to fine-tune to params.yaml, and return the new settings.

    Raises:
        UserError: params.yaml has changed since ``settings`` were read.
    """
    if params.read() != settings:
        raise UserError("params.yaml changed while the networks were compared. Run the same command again.")
    best = sorted(results, key=lambda result: -result.cross_validated_accuracy)[:n_finetuned]
    chosen = [result.name for result in best]
    print(f"fine-tuning {', '.join(chosen)}", flush=True)
    own_pictures.update_params(settings.study, "", {}, finetuned_networks=chosen)
    return params.read()


def _run(stage: str, settings: Params) -> tuple[set[str], UserError | None]:
    """Run ``stage`` for all of its networks; return the names of the stages that ended, and the error if one failed."""
    names = settings.networks if stage == PROBE else settings.finetuned_networks
    estimate = time_estimate.read(settings.study, "networks") if stage == PROBE else {}
    progress, ended = Progress(estimate), set[str]()
    n_stages = len(names) + 2  # download and prepare
    try:
        with closing(repro([stage], ended, "--keep-going")) as started:
            for name in started:
                time_left = progress.start(name, ended)
                print(f"[{len(ended) + 1}/{n_stages}] {name}{time_left}", flush=True)
    except UserError as error:
        return ended, error
    return ended, None


def read_results(settings: Params, ended: Collection[str]) -> list[NetworkResult]:
    """Read the results of the networks.

    Args:
        ended: names of stages that have ended, such as `probe_network@resnet50`. DVC has removed the outputs of those
            that failed.

    Raises:
        UserError: the networks were computed in different precisions, or a weights file has changed.
    """
    names = [name for name in settings.networks if _has_outputs(network_file(settings, name), f"{PROBE}@{name}", ended)]
    contents = {name: files.read_json(network_file(settings, name)) for name in names}
    precisions = {content["precision"]: name for name, content in contents.items()}
    if len(precisions) > 1:
        mixture = " and ".join(f"{name} in {precision}" for precision, name in precisions.items())
        raise UserError(f"networks were computed in different precisions, which are not comparable. Run `dvc repro "
                        f"--force {PROBE}`. Got {mixture}.")  # fmt: skip
    return [_read_result(settings, name, content, ended) for name, content in contents.items()]


def _has_outputs(path: Path, stage: str, ended: Collection[str]) -> bool:
    return stage in ended and path.is_file()


def _read_result(settings: Params, name: str, content: dict[str, Any], ended: Collection[str]) -> NetworkResult:
    weights = Path(settings.networks[name].weights)
    if weights.is_file() and files.cached_sha256(weights) != content["weights_sha256"]:
        raise UserError(f"{weights} has changed since {name} was computed. Restore it, or run `dvc repro --force "
                        f"{PROBE}@{name}`.")  # fmt: skip
    labels, _ = splits.read_labels(prepared_file(settings), "test")
    predictions = files.read_arrays(network_probes_file(settings, name), "predictions").arrays["predictions"]
    logits = finetuned_folder(settings, name) / "logits.safetensors"
    finetuned = None
    if _has_outputs(logits, f"{FINETUNE}@{name}", ended):
        finetuned = files.read_arrays(logits, "logits").arrays["logits"].argmax(2) == labels
    facts = _run_facts(settings, name)
    return NetworkResult(
        name=name,
        weights=content["weights"],
        sha256=content["weights_sha256"],
        license=content["license"],
        parameters=content["parameters"],
        macs=content["macs"],
        memory=content["weight_bytes"] + BATCH_SIZE * content["activation_bytes"],
        milliseconds=facts.get("milliseconds_per_image"),
        device=", ".join(f"{facts[key]}{unit}" for key, unit in (("device", ""), ("threads", " threads")) if facts),
        label_budgets=tuple(content["label_budgets"]),
        cross_validated_accuracy=float(np.mean(content["cross_validated_accuracy"][-1])),
        correct=predictions == labels,
        finetuned_correct=finetuned,
    )


def _run_facts(settings: Params, name: str) -> dict[str, Any]:
    """Return the provenance of the probes; empty if there is none, or if it describes an earlier run."""
    path, output = run_file(settings.study, f"{PROBE}@{name}"), network_file(settings, name)
    facts = files.read_json(path) if path.is_file() else {}
    return facts if facts.get("sha256", {}).get(output.as_posix()) == files.sha256(output) else {}


def _show(settings: Params, results: list[NetworkResult]) -> None:
    """Print the table, and write the files of the comparison."""
    ranking = networks.compare(results)
    prepared, study = prepared_file(settings), settings.selected_study
    labels, classes = splits.read_labels(prepared, "test")
    majority, majority_accuracy = evaluation.majority_baseline(
        training_labels=splits.read_labels(prepared, "training")[0], labels=labels
    )
    left_out = left_out_file(settings.study)
    compared = {result.name for result in results}
    failed = {name: FAILED for name in settings.networks if name not in compared}
    content = NetworksData(
        study_name=settings.study,
        study=study,
        dataset=registry.title(study.dataset),
        classes=classes,
        n_test=len(labels),
        ranking=ranking,
        left_out={**(files.read_json(left_out) if left_out.is_file() else {}), **failed},
        batch_size=BATCH_SIZE,
        majority=(classes[majority], majority_accuracy),
    )
    svg = figures.as_svg(figures.networks, ranking)
    report = page_file(settings.study)
    files.write_text(f"plots/{settings.study}/networks.svg", svg)
    files.write_text(report, page.render_networks_html(content, svg))
    files.write_csv(f"metrics/{settings.study}/networks.csv", *_csv(ranking))
    files.write_csv(f"metrics/{settings.study}/networks_correct.csv", *_correct_csv(settings, ranking))
    files.write_json(f"metrics/{settings.study}/networks.json", _provenance(settings, ranking))
    Console().print(table(ranking, settings.study))
    print(f"The report is {report}")


def page_file(study: str) -> Path:
    """Return the page. It is not in report/STUDY, because DVC deletes that folder when it runs `compare` again."""
    return Path(f"networks/{study}/index.html")


def table(ranking: NetworkComparison, study: str) -> Table:
    """Return the networks by the test accuracy of their probes."""
    caption = f"= not significantly worse than the best; ◆ on the Pareto front of accuracy and {_cost_name(ranking)}"
    rich_table = Table(title=f"Test accuracy of linear probes, study {study}, %", title_justify="left", caption=caption,
                       caption_justify="left", box=SIMPLE_HEAD)  # fmt: skip
    rich_table.add_column("network", no_wrap=True)
    has_finetuned = any(row.finetuned_accuracy for row in ranking.networks)
    for column in ["accuracy (95% CI)", "gap", "ms", "GMACs", *(["fine-tuned"] if has_finetuned else [])]:
        rich_table.add_column(column, justify="right", no_wrap=True)
    for row in ranking.networks:
        result, gap = row.result, row.gap
        marks = [*(["="] if row in ranking.not_significantly_worse else []), *(["◆"] if row.is_on_front else [])]
        cells = [
            " ".join([result.name, *marks]),
            _with_interval(row.accuracy),
            "–" if gap is None else points(gap.gain.value),
            "–" if result.milliseconds is None else f"{result.milliseconds:.3g}",
            f"{result.macs / 1e9:.3g}",
        ]
        if has_finetuned:
            cells.append("–" if row.finetuned_accuracy is None else percent(row.finetuned_accuracy.value))
        rich_table.add_row(*cells, style="bold green" if row is ranking.best else "")
    return rich_table


def _with_interval(estimate: Estimate) -> str:
    return f"{percent(estimate.value)} ({percent(estimate.low)}–{percent(estimate.high)})"


def _cost_name(ranking: NetworkComparison) -> str:
    return "milliseconds per image" if ranking.cost_is_time else "multiply-accumulate operations"


def _csv(ranking: NetworkComparison) -> tuple[list[str], list[list[Any]]]:
    """Return the header and one row per network, accuracies in percent."""
    budgets = ranking.best.result.label_budgets
    header = [
        "network", "accuracy", "low", "high", "gap", "gap_low", "gap_high", "p", "significantly_worse", "pareto_front",
        "ms_per_image", "gmacs", "parameters", "memory_mb", "license", "cross_validated", "finetuned", "finetuned_low",
        "finetuned_high", *(f"accuracy_{budget}" for budget in budgets[:-1]),
    ]  # fmt: skip
    rows = []
    for row in ranking.networks:
        result, gap = row.result, row.gap
        gap_cells = ["", "", "", ""]
        if gap is not None:
            gap_cells = [*(percent(value, 2) for value in gap.gain), f"{gap.p:.3g}"]
        finetuned = [percent(value, 2) for value in row.finetuned_accuracy] if row.finetuned_accuracy else ["", "", ""]
        rows.append([
            result.name, *(percent(value, 2) for value in row.accuracy), *gap_cells,
            str(row.is_significantly_worse).lower(), str(row.is_on_front).lower(),
            "" if result.milliseconds is None else result.milliseconds, f"{result.macs / 1e9:.3f}", result.parameters,
            round(result.memory / 1e6), result.license, percent(result.cross_validated_accuracy, 2), *finetuned,
            *(percent(correct.mean(), 2) for correct in result.correct[:-1]),
        ])  # fmt: skip
    return header, rows


def _correct_csv(settings: Params, ranking: NetworkComparison) -> tuple[list[str], list[list[Any]]]:
    """Return which test images are correct, one row per network, label budget and seed; see ``decode_bits``."""
    rows: list[list[Any]] = []
    for row in ranking.networks:
        result = row.result
        by_training = {("probe", n): correct for n, correct in zip(result.label_budgets, result.correct, strict=True)}
        if result.finetuned_correct is not None:
            by_training["finetuned", result.label_budgets[-1]] = result.finetuned_correct
        rows += [
            [result.name, kind, budget, seed, len(bits), evaluation.encode_bits(bits)]
            for (kind, budget), by_seed in by_training.items()
            for seed, bits in zip(settings.selected_study.seeds, by_seed, strict=True)
        ]
    return ["network", "training", "label_budget", "seed", "images", "correct"], rows


def _provenance(settings: Params, ranking: NetworkComparison) -> dict[str, Any]:
    """Return what the results depend on, and where they were computed."""
    correlation = ranking.rank_correlation
    return {
        "study": settings.study,
        "settings": dataclasses.asdict(settings.selected_study),
        "finetuning_recipe": settings.finetuning_recipe.settings,
        "commit": run_info.commit(),
        "rank_correlation": None if correlation is None else [round(value, 3) for value in correlation],
        "networks": {
            row.result.name: {
                "model_name": settings.networks[row.result.name].model_name,
                "weights": record.weights_name(settings.networks[row.result.name].weights),
                "weights_source": row.result.weights,
                "weights_sha256": row.result.sha256,
                "device": row.result.device,
            }
            for row in ranking.networks
        },
    }


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
