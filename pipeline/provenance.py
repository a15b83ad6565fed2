"""Provenance of a stage: settings, code, device, times and hashes, in `runs/<study>/<stage>.json`.

The file is not an output of the stage: its times differ from run to run, so DVC would run every stage again on the next
machine. If DVC restores the outputs from its cache, the file is missing or describes an earlier run.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

from headstart import files, params
from headstart.console import UserError
from headstart.run_info import RunInfo
from pipeline.dvc_yaml import Stage, lookup, stages

PIPELINE = Path(__file__).parent.parent / "dvc.yaml"


class Run:
    """One run of a stage: its settings at the start, its provenance at the end."""

    def __init__(self, stage: str, study: str = "") -> None:
        """Read the settings.

        Args:
            stage: its name in dvc.yaml, such as `train@random-frozen-sgd`.
            study: the study that DVC started the stage for, even if `params.yaml` selects another one meanwhile. If it
                is empty, the study that `params.yaml` selects.
        """
        self._info = RunInfo()
        self._stage = stage
        self._document = params.read_yaml()
        settings = params.read()
        self.settings = params.for_study(settings, study) if study else settings

    @cached_property
    def code(self) -> list[Path]:
        """Return the source files that the stage depends on."""
        deps = find_stage(self._stage, self._document, self.settings.study).deps
        root = PIPELINE.parent
        return files.list_source_files(root / dep for dep in deps if not dep.startswith("data/"))

    def finish(self, **facts: Any) -> None:
        """Write the provenance, with ``facts``.

        Raises:
            UserError: a parameter of the stage changed while it ran. DVC would record the new value.
        """
        study = self.settings.study
        stage = find_stage(self._stage, self._document, study)
        used, now = (_values(stage, document) for document in (self._document, params.read_yaml()))
        for key, value in used.items():
            if now[key] != value:
                raise UserError(f"params.yaml changed while {stage.name} ran: {key} was {value} and is {now[key]}. "
                                "Run `dvc repro` again.")  # fmt: skip
        outputs = {path.as_posix(): files.cached_sha256(path) for path in files.list_source_files(stage.outs)}
        content = {**self._info.describe(), **facts, "settings": used, "sha256": outputs}
        files.write_json(run_file(study, stage.name), content)


def run_file(study: str, stage: str) -> Path:
    """Return the path of the provenance of ``stage``."""
    return Path(f"runs/{study}/{stage}.json")


def find_stage(name: str, document: dict[str, Any], study: str) -> Stage:
    """Return the stage ``name`` of dvc.yaml with the parameters ``document`` and ``study``."""
    return next(stage for stage in stages({**document, "study": study}, str(PIPELINE)) if stage.name == name)


def _values(stage: Stage, document: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the stage's parameters; None for one that is missing."""
    values = {}
    for key in stage.params:
        try:
            values[key] = lookup(document, key)
        except (KeyError, TypeError):
            values[key] = None
    return values
