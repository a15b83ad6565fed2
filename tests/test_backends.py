"""A study on SLURM and on Ray, with nodes that die; what home does, and what it refuses."""

import os
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from rich.console import Console

from cluster import __main__ as command
from cluster import home, settings, spec
from cluster.backend import State
from cluster.job import JobResult, JobSpec
from cluster.progress import SHOWN, ProgressDisplay
from headstart.console import UserError
from headstart.params import ParamsError
from pipeline.dvc_yaml import Stage, stages

from . import kill_nodes, ray_nodes, slurm
from .clones import tiny_clone
from .conftest import ROOT, run

MISSING: dict[str, Callable[[], str]] = {"slurm": slurm.missing, "ray": ray_nodes.missing}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, str]:
    return kill_nodes.alone(tmp_path_factory.mktemp("alone") / "clone", every=False)


@pytest.mark.pipeline
@pytest.mark.parametrize("backend", ["slurm", "ray"])
def test_as_on_one_machine_with_nodes_that_die(tmp_path, backend, alone):
    if why := MISSING[backend]():
        pytest.skip(why)
    wrong, fell = kill_nodes.study(tmp_path, backend, alone, kills=2, seed=1, every=False)
    assert wrong == []
    assert fell["a node"] == 1


SETTINGS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def test_what_units_do_and_what_of_it_computes():
    plan = {stage.name: home.needs_gpu(stage) for stage in home.planned(stages(SETTINGS, str(ROOT / "dvc.yaml")))}
    assert [name for name, needs_gpu in plan.items() if not needs_gpu] == [
        "download",
        "prepare",
        "probe@pretrained",
        "probe@random",
    ]
    assert [name for name, needs_gpu in plan.items() if needs_gpu] == [
        *(f"{stage}@{start}" for stage in ("initialize", "features") for start in ("pretrained", "random")),
        *(f"train@{name}" for name in SETTINGS["configurations"]),
    ]


def test_a_stage_is_told_of_what_it_needs_and_of_nothing_else():
    by_name = {stage.name: stage for stage in stages(SETTINGS, str(ROOT / "dvc.yaml"))}
    lock = {name: {"outs": [{"path": out} for out in stage.outs]} for name, stage in by_name.items()}
    assert set(home.upstream(by_name["train@random-frozen-sgd"], lock)) == {
        "prepare",
        "initialize@random",
        "features@random",
    }
    assert home.upstream(by_name["download"], lock) == {}


@pytest.mark.parametrize(
    ("gpus", "needs_gpu", "ours", "told"),
    [
        (0, True, {}, ("cpu", "float32")),
        (0, True, {"HEADSTART_DTYPE": "bfloat16"}, ("cpu", "bfloat16")),
        (1, True, {}, ("cuda", "bfloat16")),
        (1, False, {}, ("cpu", "float32")),
        (1, True, {"HEADSTART_DTYPE": "float32", "HEADSTART_DEVICE": "cpu"}, ("cuda", "float32")),
    ],
)
def test_all_machines_compute_alike(gpus, needs_gpu, ours, told):
    environment = home.environment(gpus, 3, needs_gpu, ours)
    assert (environment["HEADSTART_DEVICE"], environment["HEADSTART_DTYPE"]) == told
    assert environment["OMP_NUM_THREADS"] == "3"


class Job:
    def __init__(self, backend: "Backend", spec: JobSpec, states: Iterator[State | JobResult]) -> None:
        self.unit = spec
        self._engine = backend
        self._states = chain([State("waiting"), State("running", "here")], states)

    def state(self) -> State:
        state = next(self._states)
        if isinstance(state, State):
            return state
        self._engine.ended.append(self.unit.stage)
        self._engine.now -= 1
        return State("ended", outcome=state)


class Backend:
    """Gives each stage the outcomes that it is made with, one an attempt, each after the states before it."""

    def __init__(self, **outcomes: list[State | JobResult]) -> None:
        self._left = {name: iter(each) for name, each in outcomes.items()}
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.avoided: list[Collection[str]] = []
        self.now = self.most = 0

    def submit(self, specs: Sequence[JobSpec], *, needs_gpu: bool, avoid: Collection[str] = ()) -> list[Job]:
        self.begun += [spec.stage for spec in specs]
        self.avoided += [avoid for _ in specs]
        self.now += len(specs)
        self.most = max(self.most, self.now)
        return [Job(self, spec, self._left[spec.stage]) for spec in specs]

    def look(self) -> None:
        pass

    def close(self) -> None:
        pass


DONE = JobResult("here", 2.0, ran=True)
LOST = JobResult("there", problem="the machine ended")


@pytest.fixture
def perform(tmp_path, monkeypatch) -> Callable[..., list[JobResult]]:
    """Performs stages, each named with those that it needs."""
    monkeypatch.setattr(home, "POLL", 0)

    def perform(backend: Backend, *names: str, needs: Mapping[str, Sequence[str]] = {}, max_jobs: int = 64):
        plan = [Stage(name, "", (), tuple(needs.get(name, ())), (), (name,), True) for name in names]
        collected: list[JobResult] = []
        with ProgressDisplay() as board:
            home.perform(backend, plan, lambda stage: JobSpec(stage.name, "0" * 40), collected.append, max_attempts=3,
                         max_jobs=max_jobs, board=board, logs=tmp_path)  # fmt: skip
        return collected

    return perform


def test_a_stage_begins_as_soon_as_what_it_needs_is_done(perform):
    """Trainings do not wait for the probes, and nothing begins after what has failed."""
    slow = [State("running", "here")] * 5
    backend = Backend(features=[DONE], probe=[*slow, DONE], train=[DONE], broken=[LOST] * 3, after=[DONE])
    needs = {"probe": ["features"], "train": ["features"], "after": ["broken"]}
    with pytest.raises(UserError, match="1 of 5 stages failed"):
        perform(backend, "features", "probe", "train", "broken", "after", needs=needs)
    assert backend.begun.index("features") < backend.begun.index("train")
    assert "after" not in backend.begun
    assert backend.ended.index("train") < backend.ended.index("probe")


def test_no_more_at_once_than_asked_for(perform):
    names = [f"stage{number}" for number in range(10)]
    backend = Backend(**{name: [DONE] for name in names})
    assert len(perform(backend, *names, max_jobs=3)) == 10
    assert backend.most == 3


def test_a_stage_is_begun_again_on_another_machine(perform):
    backend = Backend(unlucky=[replace(LOST, host=host) for host in ("node2", "node1")] + [DONE])
    perform(backend, "unlucky")
    assert backend.avoided == [(), ("node2",), ("node1", "node2")]


def test_what_is_lost_is_begun_again_and_what_would_fail_again_is_not(perform, tmp_path, capsys):
    mistake = JobResult("here", problem="`dvc repro` failed: lr is 0", output="all it said", permanent=True)
    backend = Backend(good=[DONE], unlucky=[LOST, LOST, DONE], wrong=[mistake])
    with pytest.raises(UserError, match=r"1 of 3 stages failed; .* run the same command to continue") as refused:
        perform(backend, "good", "unlucky", "wrong")
    assert refused.value.details == [f"wrong on here: `dvc repro` failed: lr is 0 ({tmp_path}/wrong.txt)"]
    assert (tmp_path / "wrong.txt").read_text() == "all it said"
    assert sorted(backend.begun) == ["good", "unlucky", "unlucky", "unlucky", "wrong"]
    said = capsys.readouterr().out.splitlines()
    assert "done     good  here, 2 s" in said
    assert said.count("again    unlucky  on there: the machine ended") == 2
    assert said.index("running  unlucky  here") < said.index("done     unlucky  here, 2 s")


def test_nothing_is_begun_for_ever(perform):
    backend = Backend(unlucky=[LOST] * 9)
    with pytest.raises(UserError, match="1 of 1 stages failed"):
        perform(backend, "unlucky")
    assert backend.begun == ["unlucky"] * 3


def test_of_hundreds_of_failures_the_first_are_named(perform):
    names = [f"stage{number}" for number in range(100)]
    with pytest.raises(UserError) as refused:
        perform(Backend(**{name: [LOST] * 3 for name in names}), *names)
    assert len(refused.value.details) == home.LISTED + 1
    assert refused.value.details[-1] == f"and {100 - home.LISTED} more"


def test_a_terminal_shows_what_runs_first_and_no_more_than_fits(tmp_path):
    console = Console(force_terminal=True, width=80, record=True)
    with ProgressDisplay(console) as board:
        for number in range(100):
            board.show(f"waits{number}", "waiting", "")
        board.show("runs[red]", "running", "node7")
        console.begin_capture()
        board.draw()
        shown = console.end_capture()
    assert "running  runs[red]    node7" in shown
    assert shown.index("runs[red]") < shown.index("waits")
    assert f"and {101 - SHOWN} more" in shown


SLURM = {"partition": None, "account": None, "time_limit_minutes": 240, "memory_gb": 1, "options": {}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpus": -1}, "gpus"),
        ({"slurm": {"minuts": 5}}, "minuts"),
        ({"ray": None}, "ray"),
        ({"max_jobs": 0}, "max_jobs"),
        (
            {"slurm": SLURM | {"time_limit_minutes": 4}},
            r"slurm.time_limit_minutes: Input should be greater than or equal to 5 \(got 4\)",
        ),
        ({"more": 1}, "unknown key: more"),
    ],
)
def test_what_cluster_yaml_cannot_say(tmp_path, monkeypatch, change, message):
    document = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8")) | change
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParamsError, match=f"^cluster.yaml: .*{message}"):
        settings.read()


def test_without_an_engine_or_without_dvc(monkeypatch):
    for name, package in {"ray": "ray", "slurm": "submitit"}.items():
        monkeypatch.delitem(sys.modules, f"cluster.{name}", raising=False)
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=f"{name} needs the package {package}: `make backends` installs it"):
            command._engine(name, settings.read())
    monkeypatch.setattr(spec.shutil, "which", lambda *arguments, **options: None)
    lost = spec.attempt(JobSpec("prepare", "0" * 40))
    assert lost.problem.startswith(f"{spec.host()} has no git beside ")


@pytest.mark.parametrize(
    ("status", "said", "permanent"),
    [
        (1, "headstart: params.yaml: lr is -1: it must be greater than 0", True),
        (1, "headstart: the loss is not finite: [Errno 28] is no number", True),
        (75, "headstart: /scratch/x.safetensors cannot be written (I/O error: No space left (os error 28))", False),
        (75, "headstart: the GPU's memory is full: lower batch_size in params.yaml", False),
        (1, "RuntimeError: CUDA error: an illegal memory access was encountered", False),
        (-9, "", False),
    ],
)
def test_what_would_fail_on_any_machine(tmp_path, status, said, permanent):
    """It is told by the status of the stage, whatever the words are; DVC runs it for real."""
    run("git", "init", "-q", cwd=tmp_path)
    run("dvc", "init", "-q", cwd=tmp_path)
    end = "kill -9 $$" if status < 0 else f"exit {status}"
    (tmp_path / "stage.sh").write_text(f"echo {shlex.quote(said)} >&2\n{end}\n")
    (tmp_path / "dvc.yaml").write_text("stages: {train: {cmd: exec sh stage.sh}}")
    with pytest.raises(spec.CommandError) as failed:
        spec.dvc(tmp_path, "repro")
    assert failed.value.permanent == permanent
    assert said.removeprefix("headstart: ")[:250] in str(failed.value) or not said.startswith("headstart")


def test_only_what_died_on_this_machine_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(spec.socket, "gethostname", lambda: "gpu")
    monkeypatch.setattr(spec.psutil, "pid_exists", lambda pid: pid == 7)
    names = {of: tmp_path / f"headstart-unit-{of}+x" for of in ("gpu+7", "gpu+8", "gpu-8+8", "gpu-1001+7")}
    for path in names.values():
        path.mkdir()
    spec.cleanup_orphans(tmp_path)
    assert set(tmp_path.iterdir()) == set(names.values()) - {names["gpu+8"]}


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A repository without a remote."""
    return tiny_clone(tmp_path_factory.mktemp("home"))


def refused(clone: Path, backend: str = "ray", **environment: str) -> list[str]:
    done = run("env", f"PYTHONPATH={clone / 'src'}", *(f"{key}={value}" for key, value in environment.items()),
               sys.executable, "-m", "cluster", backend, cwd=clone, check=False)  # fmt: skip
    assert done.returncode == 1
    return done.stderr.splitlines()


@pytest.mark.pipeline
def test_what_home_refuses(clone, tmp_path):
    assert refused(clone, "kubernetes") == [
        "headstart: on which backend? Known are ray, slurm: make cluster BACKEND=ray"
    ]
    [line] = refused(clone)
    assert line.startswith("headstart: DVC has no default remote to bring results to: `dvc remote add --default ")
    run("dvc", "remote", "add", "--quiet", "--default", "shared", str(tmp_path / "remote"), cwd=clone)
    assert refused(clone)[1:] == ["  M .dvc/config"]
    run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qam", "remote", cwd=clone)
    with FileLock(clone / ".cluster/lock"):
        assert refused(clone) == ["headstart: another `make cluster` runs here: wait for it, or stop it"]

    edit(clone, origin=str(ROOT))  # which has not been given the clone's commit
    [line] = refused(clone)
    assert line.startswith(f"headstart: {ROOT} has no commit ")
    assert line.endswith(": push it there, or name another one")
    edit(clone, origin=None)

    edit(clone, gpus=1)
    if not MISSING["ray"]() and not Path("/dev/nvidia0").exists():
        assert refused(clone) == [
            "headstart: no machine has 1 CPU and 1 GPU here: change gpus and cpus in cluster.yaml"
        ]
    edit(clone, gpus=0, ray={"address": "127.0.0.1:1"})
    if not MISSING["ray"]():
        [line] = refused(clone)
        assert line.startswith("headstart: Ray at 127.0.0.1:1 cannot be used: ")
    if not MISSING["slurm"]() and "SLURM_CONF" not in os.environ:
        [line] = refused(clone, "slurm")
        assert line.startswith("headstart: SLURM does not take the stages: ")


def edit(clone: Path, **changes: object) -> None:
    path = clone / "cluster.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
