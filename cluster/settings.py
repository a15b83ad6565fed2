"""``cluster.yaml`` as frozen dataclasses: how the stages run on a cluster."""

from typing import Annotated

from pydantic import Field, StrictInt, StrictStr
from pydantic.dataclasses import dataclass

from headstart import params
from headstart.params import STRICT_CONFIG, NonNegativeInt, Number, PositiveInt

PATH = "cluster.yaml"


@dataclass(frozen=True, config=STRICT_CONFIG)
class Slurm:
    """Options of a SLURM job."""

    partition: StrictStr | None
    account: StrictStr | None
    time_limit_minutes: Annotated[StrictInt, Field(ge=5)]  # submitit ends the work up to 2.5 minutes before the limit
    memory_gb: Annotated[Number, Field(gt=0)]
    options: dict[StrictStr, StrictStr | StrictInt]


@dataclass(frozen=True, config=STRICT_CONFIG)
class Ray:
    """The Ray cluster to connect to."""

    address: StrictStr | None


@dataclass(frozen=True, config=STRICT_CONFIG)
class Settings:
    """All of ``cluster.yaml``, where each key is explained."""

    gpus: NonNegativeInt
    cpus: PositiveInt
    max_jobs: PositiveInt
    max_attempts: PositiveInt
    shared_folder: StrictStr | None
    origin: StrictStr | None
    scratch: StrictStr | None
    slurm: Slurm
    ray: Ray


def read() -> Settings:
    """Read and check ``cluster.yaml``.

    Raises:
        ParamsError: it is missing, is not YAML, or has an unknown, missing, wrongly typed or impossible value.
    """
    return params.validate(params.read_yaml(PATH), Settings, {"slurm": Slurm, "ray": Ray}, PATH)
