"""Run several studies, one after the other, and then compare them on one page.

    python -m scripts.run_studies STUDY …

Each study runs like `make select` followed by `make study`. If a study has a record, it uses the configurations of that
record. A study that fails does not stop the others. Afterwards, params.yaml selects the same study as before.

`vtab-DATASET`, for example `vtab-dtd`, follows the VTAB-1k protocol (Zhai et al. 2019, arXiv 1910.04867): 800 training
and 200 validation images, all test images, and the configurations of params.yaml for every dataset. The study is added
to params.yaml if it is not there. After Ctrl-C, run the same command again.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headstart import files, params
from headstart.console import UserError, run_cli
from headstart.data import registry
from scripts import argument_parser, params_lock, run_study, select_study, studies, table, yaml_text
from scripts.pictures import NETWORK

VTAB = "vtab-"
VTAB_STUDY: dict[str, Any] = {
    "image_size": 224,
    "training_images": 800,
    "validation_images": 200,
    "pool_images": None,
    "test_images": None,
    "batch_size": 32,
    "n_epochs": 20,
    "patience": None,
    "split_seed": 0,
    "seeds": [0, 1, 2],
    "label_budgets": [],
    "probe_budgets": [],
    "cache_activations": True,
}


def main(*arguments: str) -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("studies", metavar="STUDY", nargs="*", help="names of studies in params.yaml, or vtab-DATASET")
    names = list(dict.fromkeys(parser.parse_args(arguments).studies))
    if not names:
        raise UserError("no studies given. Set NAMES, for example `make studies NAMES='quick labels'`.")
    with params_lock():
        _add_vtab_studies(names)
        failed = _run(names)
    if finished := [name for name in names if name not in failed]:
        studies.main(*finished)
    if failed:
        raise UserError(f"{len(failed)} of {len(names)} studies failed. Fix the errors above, and run the same command "
                        f"again. Got {', '.join(failed)}.")  # fmt: skip


def _run(names: Sequence[str]) -> list[str]:
    """Run the studies, restore params.yaml, and return the names of those that failed.

    Raises:
        UserError: params.yaml was edited while a study ran. The edit is not overwritten.
    """
    path, failed = Path("params.yaml"), []
    original = expected = path.read_text(encoding="utf-8")
    try:
        for index, name in enumerate(names, 1):
            print(f"\nStudy {index} of {len(names)}: {name}", flush=True)
            files.write_text(path, original)  # selecting the previous study may have changed the configurations
            select_study.main(name)
            expected = path.read_text(encoding="utf-8")
            try:
                run_study.run_selected_study()
                table.main(name)
            except UserError as error:
                failed.append(name)
                print(f"headstart: {name} failed: {error}", file=sys.stderr, flush=True)
            if path.read_text(encoding="utf-8") != expected:
                raise UserError("params.yaml changed while the studies ran. Run the same command again.")
    finally:
        if path.read_text(encoding="utf-8") == expected:
            files.write_text(path, original)
    return failed


def _add_vtab_studies(names: list[str]) -> None:
    """Add the VTAB studies among ``names`` that params.yaml does not have.

    Raises:
        UserError: there is no such dataset, or a name is no study.
    """
    settings = params.read()
    known = settings.studies
    studies.require_known([name for name in names if not name.startswith(VTAB)], settings)
    changes: list[tuple[tuple[str, ...], Any]] = []
    for name in names:
        if not name.startswith(VTAB) or name in known:
            continue
        dataset = name.removeprefix(VTAB)
        if dataset not in registry.names():
            raise UserError(f"unknown dataset in NAMES. Choose one of {', '.join(registry.names())}. Got {dataset!r}.")
        first = {"dataset": dataset, "skip_unusable_images": False, "group_by": None}
        changes.append((("studies", name), first | NETWORK | VTAB_STUDY))
    if changes:
        path = Path("params.yaml")
        files.write_text(path, yaml_text.edit(path.read_text(encoding="utf-8"), changes))


if __name__ == "__main__":
    run_cli(main, *sys.argv[1:])
