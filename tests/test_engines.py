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
from cluster import home, settings, unit
from cluster.board import SHOWN, Board
from cluster.engine import State
from cluster.unit import Outcome, Unit
from headstart.console import UserError
from headstart.params import ParamsError
from stages.pipeline import Stage, stages

from . import machines, ray_nodes, slurm
from .clones import tiny_clone
from .conftest import ROOT, run

MISSING: dict[str, Callable[[], str]] = {"slurm": slurm.missing, "ray": ray_nodes.missing}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, str]:
    return machines.alone(tmp_path_factory.mktemp("alone") / "clone", every=False)


@pytest.mark.pipeline
@pytest.mark.parametrize("engine", ["slurm", "ray"])
def test_as_on_one_machine_with_nodes_that_die(tmp_path, engine, alone):
    if why := MISSING[engine]():
        pytest.skip(why)
    wrong, fell = machines.study(tmp_path, engine, alone, kills=2, seed=1, every=False)
    assert wrong == []
    assert fell["a node"] == 1


SETTINGS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def test_what_units_do_and_what_of_it_computes():
    plan = {stage.name: home.computes(stage) for stage in home.planned(stages(SETTINGS, str(ROOT / "dvc.yaml")))}
    assert [name for name, computes in plan.items() if not computes] == [
        "download",
        "prepare",
        "probe@pretrained",
        "probe@random",
    ]
    assert [name for name, computes in plan.items() if computes] == [
        *(f"{stage}@{start}" for stage in ("start", "features") for start in ("pretrained", "random")),
        *(f"train@{name}" for name in SETTINGS["experiments"]),
    ]


def test_a_stage_is_told_of_what_it_needs_and_of_nothing_else():
    by_name = {stage.name: stage for stage in stages(SETTINGS, str(ROOT / "dvc.yaml"))}
    lock = {name: {"outs": [{"path": out} for out in stage.outs]} for name, stage in by_name.items()}
    assert set(home.upstream(by_name["train@random-frozen-sgd"], lock)) == {
        "prepare",
        "start@random",
        "features@random",
    }
    assert home.upstream(by_name["download"], lock) == {}


@pytest.mark.parametrize(
    ("gpus", "computes", "ours", "told"),
    [
        (0, True, {}, ("cpu", "float32")),
        (0, True, {"HEADSTART_DTYPE": "bfloat16"}, ("cpu", "bfloat16")),
        (1, True, {}, ("cuda", "bfloat16")),
        (1, False, {}, ("cpu", "float32")),
        (1, True, {"HEADSTART_DTYPE": "float32", "HEADSTART_DEVICE": "cpu"}, ("cuda", "float32")),
    ],
)
def test_all_machines_compute_alike(gpus, computes, ours, told):
    environment = home.environment(gpus, 3, computes, ours)
    assert (environment["HEADSTART_DEVICE"], environment["HEADSTART_DTYPE"]) == told
    assert environment["OMP_NUM_THREADS"] == "3"


class Job:
    def __init__(self, engine: "Engine", unit: Unit, states: Iterator[State | Outcome]) -> None:
        self.unit = unit
        self._engine = engine
        self._states = chain([State("waiting"), State("running", "here")], states)

    def state(self) -> State:
        state = next(self._states)
        if isinstance(state, State):
            return state
        self._engine.ended.append(self.unit.stage)
        self._engine.now -= 1
        return State("ended", outcome=state)


class Engine:
    """Gives each stage the outcomes that it is made with, one an attempt, each after the states before it."""

    def __init__(self, **outcomes: list[State | Outcome]) -> None:
        self._left = {name: iter(each) for name, each in outcomes.items()}
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.avoided: list[Collection[str]] = []
        self.now = self.most = 0

    def submit(self, units: Sequence[Unit], *, computes: bool, avoid: Collection[str] = ()) -> list[Job]:
        self.begun += [unit.stage for unit in units]
        self.avoided += [avoid for _ in units]
        self.now += len(units)
        self.most = max(self.most, self.now)
        return [Job(self, unit, self._left[unit.stage]) for unit in units]

    def look(self) -> None:
        pass

    def close(self) -> None:
        pass


DONE = Outcome("here", 2.0, ran=True)
LOST = Outcome("there", problem="the machine ended")


@pytest.fixture
def perform(tmp_path, monkeypatch) -> Callable[..., list[Outcome]]:
    """Performs stages, each named with those that it needs."""
    monkeypatch.setattr(home, "POLL", 0)

    def perform(engine: Engine, *names: str, needs: Mapping[str, Sequence[str]] = {}, at_once: int = 64):
        plan = [Stage(name, "", (), tuple(needs.get(name, ())), (), (name,), True) for name in names]
        collected: list[Outcome] = []
        with Board() as board:
            home.perform(engine, plan, lambda stage: Unit(stage.name, "0" * 40), collected.append, attempts=3,
                         at_once=at_once, board=board, logs=tmp_path)  # fmt: skip
        return collected

    return perform


def test_a_stage_begins_as_soon_as_what_it_needs_is_done(perform):
    """Trainings do not wait for the probes, and nothing begins after what has failed."""
    slow = [State("running", "here")] * 5
    engine = Engine(features=[DONE], probe=[*slow, DONE], train=[DONE], broken=[LOST] * 3, after=[DONE])
    needs = {"probe": ["features"], "train": ["features"], "after": ["broken"]}
    with pytest.raises(UserError, match="1 of 5 stages failed"):
        perform(engine, "features", "probe", "train", "broken", "after", needs=needs)
    assert engine.begun.index("features") < engine.begun.index("train")
    assert "after" not in engine.begun
    assert engine.ended.index("train") < engine.ended.index("probe")


def test_no_more_at_once_than_asked_for(perform):
    names = [f"stage{number}" for number in range(10)]
    engine = Engine(**{name: [DONE] for name in names})
    assert len(perform(engine, *names, at_once=3)) == 10
    assert engine.most == 3


def test_a_stage_is_begun_again_on_another_machine(perform):
    engine = Engine(unlucky=[replace(LOST, host=host) for host in ("node2", "node1")] + [DONE])
    perform(engine, "unlucky")
    assert engine.avoided == [(), ("node2",), ("node1", "node2")]


def test_what_is_lost_is_begun_again_and_what_would_fail_again_is_not(perform, tmp_path, capsys):
    mistake = Outcome("here", problem="`dvc repro` failed: lr is 0", output="all it said", lasting=True)
    engine = Engine(good=[DONE], unlucky=[LOST, LOST, DONE], wrong=[mistake])
    with pytest.raises(UserError, match=r"1 of 3 stages failed; .* run the same command to continue") as refused:
        perform(engine, "good", "unlucky", "wrong")
    assert refused.value.details == [f"wrong on here: `dvc repro` failed: lr is 0 ({tmp_path}/wrong.txt)"]
    assert (tmp_path / "wrong.txt").read_text() == "all it said"
    assert sorted(engine.begun) == ["good", "unlucky", "unlucky", "unlucky", "wrong"]
    said = capsys.readouterr().out.splitlines()
    assert "done     good  here, 2 s" in said
    assert said.count("again    unlucky  on there: the machine ended") == 2
    assert said.index("running  unlucky  here") < said.index("done     unlucky  here, 2 s")


def test_nothing_is_begun_for_ever(perform):
    engine = Engine(unlucky=[LOST] * 9)
    with pytest.raises(UserError, match="1 of 1 stages failed"):
        perform(engine, "unlucky")
    assert engine.begun == ["unlucky"] * 3


def test_of_hundreds_of_failures_the_first_are_named(perform):
    names = [f"stage{number}" for number in range(100)]
    with pytest.raises(UserError) as refused:
        perform(Engine(**{name: [LOST] * 3 for name in names}), *names)
    assert len(refused.value.details) == home.LISTED + 1
    assert refused.value.details[-1] == f"and {100 - home.LISTED} more"


def test_a_terminal_shows_what_runs_first_and_no_more_than_fits(tmp_path):
    console = Console(force_terminal=True, width=80, record=True)
    with Board(console) as board:
        for number in range(100):
            board.show(f"waits{number}", "waiting", "")
        board.show("runs[red]", "running", "node7")
        console.begin_capture()
        board.draw()
        shown = console.end_capture()
    assert "running  runs[red]    node7" in shown
    assert shown.index("runs[red]") < shown.index("waits")
    assert f"and {101 - SHOWN} more" in shown


SLURM = {"partition": None, "account": None, "minutes": 240, "memory_gb": 1, "options": {}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpus": -1}, "gpus"),
        ({"slurm": {"minuts": 5}}, "minuts"),
        ({"ray": None}, "ray"),
        ({"at_once": 0}, "at_once"),
        ({"slurm": SLURM | {"minutes": 4}}, r"slurm.minutes must be at least 5 \(it is 4\)"),
        ({"more": 1}, "unknown key more"),
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
        with pytest.raises(UserError, match=f"{name} needs the package {package}: `make engines` installs it"):
            command._engine(name, settings.read())
    monkeypatch.setattr(unit.shutil, "which", lambda *arguments, **options: None)
    lost = unit.attempt(Unit("prepare", "0" * 40))
    assert lost.problem.startswith(f"{unit.host()} has no git beside ")


@pytest.mark.parametrize(
    ("status", "said", "lasting"),
    [
        (1, "headstart: params.yaml: lr is -1: it must be greater than 0", True),
        (1, "headstart: the loss is not finite: [Errno 28] is no number", True),
        (75, "headstart: /scratch/x.safetensors cannot be written (I/O error: No space left (os error 28))", False),
        (75, "headstart: the GPU's memory is full: lower batch_size in params.yaml", False),
        (1, "RuntimeError: CUDA error: an illegal memory access was encountered", False),
        (-9, "", False),
    ],
)
def test_what_would_fail_on_any_machine(tmp_path, status, said, lasting):
    """It is told by the status of the stage, whatever the words are; DVC runs it for real."""
    run("git", "init", "-q", cwd=tmp_path)
    run("dvc", "init", "-q", cwd=tmp_path)
    end = "kill -9 $$" if status < 0 else f"exit {status}"
    (tmp_path / "stage.sh").write_text(f"echo {shlex.quote(said)} >&2\n{end}\n")
    (tmp_path / "dvc.yaml").write_text("stages: {train: {cmd: exec sh stage.sh}}")
    with pytest.raises(unit.CommandError) as failed:
        unit.dvc(tmp_path, "repro")
    assert failed.value.lasting == lasting
    assert said.removeprefix("headstart: ")[:250] in str(failed.value) or not said.startswith("headstart")


def test_only_what_died_on_this_machine_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(unit.socket, "gethostname", lambda: "gpu")
    monkeypatch.setattr(unit.psutil, "pid_exists", lambda pid: pid == 7)
    names = {of: tmp_path / f"headstart-unit-{of}+x" for of in ("gpu+7", "gpu+8", "gpu-8+8", "gpu-1001+7")}
    for path in names.values():
        path.mkdir()
    unit.remove_dead(tmp_path)
    assert set(tmp_path.iterdir()) == set(names.values()) - {names["gpu+8"]}


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A repository without a remote."""
    return tiny_clone(tmp_path_factory.mktemp("home"))


def refused(clone: Path, engine: str = "ray", **environment: str) -> list[str]:
    done = run("env", f"PYTHONPATH={clone / 'src'}", *(f"{key}={value}" for key, value in environment.items()),
               sys.executable, "-m", "cluster", engine, cwd=clone, check=False)  # fmt: skip
    assert done.returncode == 1
    return done.stderr.splitlines()


@pytest.mark.pipeline
def test_what_home_refuses(clone, tmp_path):
    assert refused(clone, "kubernetes") == ["headstart: on which engine? Known are ray, slurm: make cluster ENGINE=ray"]
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
