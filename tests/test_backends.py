"""A study on SLURM and on Ray with nodes that die; scheduling, progress display, and error messages of the driver."""

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

from cluster import __main__ as cluster_main
from cluster import driver, job, settings
from cluster.backend import JobState
from cluster.job import JobResult, JobSpec
from cluster.progress import MAX_ROWS, ProgressDisplay
from headstart.console import UserError
from headstart.params import ParamsError
from pipeline.dvc_yaml import Stage, is_covered_by, stages, upstream

from . import kill_nodes, ray_nodes, slurm
from .clones import tiny_clone
from .conftest import ROOT, run

MISSING: dict[str, Callable[[], str]] = {"slurm": slurm.missing, "ray": ray_nodes.missing}
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, str]:
    return kill_nodes.run_on_one_machine(tmp_path_factory.mktemp("expected") / "clone", all_configurations=False)


@pytest.mark.slow
@pytest.mark.pipeline
@pytest.mark.parametrize("backend", ["slurm", "ray"])
def test_same_results_as_on_one_machine_with_nodes_that_die(tmp_path, backend, expected):
    if why := MISSING[backend]():
        pytest.skip(why)
    problems, killed = kill_nodes.run_with_kills(tmp_path, backend, expected, kills=2, seed=1, all_configurations=False)
    assert problems == []
    assert killed["node"] == 1


def test_all_stages_but_the_last_are_jobs_and_those_that_compute_need_a_gpu():
    plan = driver.job_stages(list(stages(PARAMS, str(ROOT / "dvc.yaml"))))
    assert [stage.name for stage in plan if not driver.needs_gpu(stage)] == [
        "download",
        "prepare",
        "probe@pretrained",
        "probe@random",
        "probe_pixels",
        "audit",
        *(f"evaluate@{name}" for name in PARAMS["configurations"]),
    ]
    assert [stage.name for stage in plan if driver.needs_gpu(stage)] == [
        *(f"{stage}@{weights}" for stage in ("initialize", "features") for weights in ("pretrained", "random")),
        *(f"train@{name}" for name in PARAMS["configurations"]),
    ]


def test_each_stage_comes_after_those_that_it_depends_on():
    plan = list(stages(PARAMS, str(ROOT / "dvc.yaml")))
    for index, stage in enumerate(plan):
        later = [out for other in plan[index:] for out in other.outs]
        assert not [out for out in later if is_covered_by(out, stage.deps)]
    blocked_by = upstream(plan)
    for stage in plan:
        naive = {other.name for other in plan if any(is_covered_by(out, stage.deps) for out in other.outs)}
        assert blocked_by[stage.name] == naive


def test_targets_select_stages_and_what_they_depend_on():
    plan = driver.job_stages(list(stages(PARAMS, str(ROOT / "dvc.yaml"))))
    names = [stage.name for stage in driver.select_stages(plan, ["features@random", "audit"])]
    expected = ["download", "prepare", "initialize@pretrained", "initialize@random", "features@pretrained",
                "features@random", "audit"]  # fmt: skip
    assert sorted(names) == sorted(expected)
    assert [stage.name for stage in plan if stage.name in expected] == names
    group = [stage.name for stage in driver.select_stages(plan, ["initialize"])]
    assert group == ["download", "prepare", "initialize@pretrained", "initialize@random"]
    assert driver.select_stages(plan, []) == plan
    with pytest.raises(UserError, match=r"unknown stage in TARGETS\. Choose from download, .* Got compare, nothing\."):
        driver.select_stages(plan, ["nothing", "compare", "audit"])


def test_a_job_gets_the_lock_entries_of_its_upstream_stages_only():
    by_name = {stage.name: stage for stage in stages(PARAMS, str(ROOT / "dvc.yaml"))}
    lock = {name: {"outs": [{"path": out} for out in stage.outs]} for name, stage in by_name.items()}
    assert set(driver.upstream_lock(by_name["train@random-frozen-sgd"], lock)) == {
        "prepare",
        "initialize@random",
        "features@random",
    }
    assert driver.upstream_lock(by_name["download"], lock) == {}


@pytest.mark.parametrize(
    ("gpus", "needs_gpu", "environ", "device", "dtype"),
    [
        (0, True, {}, "cpu", "float32"),
        (0, True, {"HEADSTART_DTYPE": "bfloat16"}, "cpu", "bfloat16"),
        (1, True, {}, "cuda", "bfloat16"),
        (1, False, {}, "cpu", "float32"),
        (1, True, {"HEADSTART_DTYPE": "float32", "HEADSTART_DEVICE": "cpu"}, "cuda", "float32"),
    ],
)
def test_all_workers_use_the_same_device_precision_and_threads(gpus, needs_gpu, environ, device, dtype):
    env = driver.worker_env(gpus=gpus, cpus=3, needs_gpu=needs_gpu, environ=environ)
    assert env == {"HEADSTART_DEVICE": device, "HEADSTART_DTYPE": dtype, "OMP_NUM_THREADS": "3"}


class FakeJob:
    def __init__(self, backend: "FakeBackend", spec: JobSpec, script: Iterator[JobState | JobResult]) -> None:
        self.spec = spec
        self._backend = backend
        self._script = chain([JobState("waiting"), JobState("running", "here")], script)

    def state(self) -> JobState:
        item = next(self._script)
        if isinstance(item, JobState):
            return item
        self._backend.ended.append(self.spec.stage)
        self._backend.active -= 1
        return JobState("ended", result=item)


class FakeBackend:
    """Gives each stage the scripted results, one per attempt, each after the scripted states in front of it."""

    def __init__(self, **scripts: list[JobState | JobResult]) -> None:
        self._scripts = {name: iter(script) for name, script in scripts.items()}
        self.submitted: list[str] = []
        self.ended: list[str] = []
        self.avoided: list[Collection[str]] = []
        self.active = self.max_active = 0

    def submit(self, specs: Sequence[JobSpec], *, needs_gpu: bool, avoid: Collection[str] = ()) -> list[FakeJob]:
        self.submitted += [spec.stage for spec in specs]
        self.avoided += [avoid for _ in specs]
        self.active += len(specs)
        self.max_active = max(self.max_active, self.active)
        return [FakeJob(self, spec, self._scripts[spec.stage]) for spec in specs]

    def poll(self) -> None:
        pass

    def close(self) -> None:
        pass


DONE = JobResult("here", 2.0, executed=True)
LOST = JobResult("there", problem="the machine died")


@pytest.fixture
def run_jobs(tmp_path, monkeypatch) -> Callable[..., list[JobResult]]:
    """Return a function that runs stages by name; ``needs``: their upstream stages."""
    monkeypatch.setattr(driver, "POLL_INTERVAL_S", 0)

    def run_jobs(backend: FakeBackend, *names: str, needs: Mapping[str, Sequence[str]] = {}, max_jobs: int = 64):
        plan = [Stage(name, "", (), tuple(needs.get(name, ())), (), (name,), True) for name in names]
        collected: list[JobResult] = []
        with ProgressDisplay() as display:
            driver.run_jobs(
                backend,
                plan,
                lambda stage: JobSpec(stage.name, "0" * 40),
                collected.append,
                max_attempts=3,
                max_jobs=max_jobs,
                display=display,
                log_dir=tmp_path,
            )
        return collected

    return run_jobs


def test_a_stage_starts_as_soon_as_its_inputs_are_complete(run_jobs):
    """Trainings do not wait for the probes, and no stage starts after a failed upstream stage."""
    slow = [JobState("running", "here")] * 5
    backend = FakeBackend(features=[DONE], probe=[*slow, DONE], train=[DONE], broken=[LOST] * 3, after=[DONE])
    needs = {"probe": ["features"], "train": ["features"], "after": ["broken"]}
    with pytest.raises(UserError, match="1 of 5 stages failed"):
        run_jobs(backend, "features", "probe", "train", "broken", "after", needs=needs)
    assert backend.submitted.index("features") < backend.submitted.index("train")
    assert "after" not in backend.submitted
    assert backend.ended.index("train") < backend.ended.index("probe")


def test_no_more_than_max_jobs_are_submitted(run_jobs):
    names = [f"stage{number}" for number in range(10)]
    backend = FakeBackend(**{name: [DONE] for name in names})
    assert len(run_jobs(backend, *names, max_jobs=3)) == 10
    assert backend.max_active == 3


def test_a_retry_avoids_the_hosts_of_earlier_failures(run_jobs):
    backend = FakeBackend(unlucky=[replace(LOST, host=host) for host in ("node2", "node1")] + [DONE])
    run_jobs(backend, "unlucky")
    assert backend.avoided == [(), ("node2",), ("node1", "node2")]


def test_lost_jobs_are_retried_and_permanent_failures_are_not(run_jobs, tmp_path, capsys):
    mistake = JobResult("here", problem="`dvc repro` failed: lr is 0", output="the whole output", permanent=True)
    backend = FakeBackend(good=[DONE], unlucky=[LOST, LOST, DONE], wrong=[mistake])
    with pytest.raises(UserError, match=r"1 of 3 stages failed; .* run the same command again to resume") as error:
        run_jobs(backend, "good", "unlucky", "wrong")
    assert error.value.details == [f"wrong on here: `dvc repro` failed: lr is 0 ({tmp_path}/wrong.txt)"]
    assert (tmp_path / "wrong.txt").read_text() == "the whole output"
    assert sorted(backend.submitted) == ["good", "unlucky", "unlucky", "unlucky", "wrong"]
    lines = capsys.readouterr().out.splitlines()
    assert "done     good  here, 2 s" in lines
    assert lines.count("retry    unlucky  on there: the machine died") == 2
    assert lines.index("running  unlucky  here") < lines.index("done     unlucky  here, 2 s")


def test_a_stage_is_tried_max_attempts_times(run_jobs):
    backend = FakeBackend(unlucky=[LOST] * 9)
    with pytest.raises(UserError, match="1 of 1 stages failed"):
        run_jobs(backend, "unlucky")
    assert backend.submitted == ["unlucky"] * 3


def test_only_the_first_of_many_failures_are_listed(run_jobs):
    names = [f"stage{number}" for number in range(100)]
    with pytest.raises(UserError) as error:
        run_jobs(FakeBackend(**{name: [LOST] * 3 for name in names}), *names)
    assert len(error.value.details) == driver.MAX_LISTED + 1
    assert error.value.details[-1] == f"and {100 - driver.MAX_LISTED} more"


def test_the_live_table_shows_running_stages_first_and_a_limited_number(tmp_path):
    console = Console(force_terminal=True, width=80, record=True)
    with ProgressDisplay(console) as display:
        for number in range(100):
            display.update(f"waits{number}", "waiting", "")
        display.update("runs[red]", "running", "node7")
        console.begin_capture()
        display.refresh()
        text = console.end_capture()
    assert "running  runs[red]    node7" in text
    assert text.index("runs[red]") < text.index("waits")
    assert f"and {101 - MAX_ROWS} more" in text


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
def test_invalid_cluster_yaml_is_rejected(tmp_path, monkeypatch, change, message):
    document = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8")) | change
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParamsError, match=f"^cluster.yaml: .*{message}"):
        settings.read()


def test_missing_packages_and_programs_are_reported(monkeypatch):
    for name, package in {"ray": "ray", "slurm": "submitit"}.items():
        monkeypatch.delitem(sys.modules, f"cluster.{name}", raising=False)
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=rf"{name} needs the package {package}\. Run `make backends`"):
            cluster_main._open_backend(name, settings.read())
    monkeypatch.setattr(job.shutil, "which", lambda *arguments, **options: None)
    result = job.run_job_safely(JobSpec("prepare", "0" * 40))
    assert result.problem.startswith(f"{job.host()} has no git, neither next to {sys.executable} nor on PATH. ")


@pytest.mark.parametrize(
    ("status", "stderr", "permanent"),
    [
        (1, "headstart: params.yaml: lr is -1: it must be greater than 0", True),
        (1, "headstart: the loss is not finite: [Errno 28] is no number", True),
        (75, "headstart: cannot write /scratch/x.safetensors (I/O error: No space left (os error 28))", False),
        (75, "headstart: out of GPU memory. Lower batch_size in params.yaml", False),
        (1, "RuntimeError: CUDA error: an illegal memory access was encountered", False),
        (-9, "", False),
    ],
)
def test_the_exit_status_of_the_stage_decides_whether_a_failure_is_permanent(tmp_path, status, stderr, permanent):
    """The wording of the error does not matter. DVC runs the stage for real."""
    run("git", "init", "-q", cwd=tmp_path)
    run("dvc", "init", "-q", cwd=tmp_path)
    end = "kill -9 $$" if status < 0 else f"exit {status}"
    (tmp_path / "stage.sh").write_text(f"echo {shlex.quote(stderr)} >&2\n{end}\n")
    (tmp_path / "dvc.yaml").write_text("stages: {train: {cmd: exec sh stage.sh}}")
    with pytest.raises(job.CommandError) as error:
        job.dvc(tmp_path, "repro")
    assert error.value.permanent == permanent
    assert stderr.removeprefix("headstart: ")[:250] in str(error.value) or not stderr.startswith("headstart")


def test_only_clones_of_dead_jobs_on_this_machine_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(job.socket, "gethostname", lambda: "gpu")
    monkeypatch.setattr(job.files, "has_running_creator", lambda folder, pid: pid == 7)
    folders = {owner: tmp_path / f"headstart-job-{owner}+x" for owner in ("gpu+7", "gpu+8", "gpu-8+8", "gpu-1001+7")}
    for folder in folders.values():
        folder.mkdir()
    job.cleanup_orphans(tmp_path)
    assert set(tmp_path.iterdir()) == set(folders.values()) - {folders["gpu+8"]}


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A repository without a remote."""
    return tiny_clone(tmp_path_factory.mktemp("repository"))


def error_lines(clone: Path, backend: str = "ray", **environment: str) -> list[str]:
    """Run `python -m cluster`, which must fail, and return the lines of its stderr."""
    variables = [f"{key}={value}" for key, value in ({"PYTHONPATH": str(clone / "src")} | environment).items()]
    result = run("env", *variables, sys.executable, "-m", "cluster", backend, cwd=clone, check=False)
    assert result.returncode == 1
    return result.stderr.splitlines()


@pytest.mark.pipeline
def test_the_driver_rejects_what_cannot_work(clone, tmp_path):
    assert error_lines(clone, "kubernetes") == [
        "headstart: unknown backend. Choose one of ray, slurm, for example `make cluster BACKEND=ray`. "
        "Got 'kubernetes'."
    ]
    [line] = error_lines(clone)
    assert line.startswith("headstart: DVC has no default remote to push results to. Run `dvc remote add --default ")
    run("dvc", "remote", "add", "--quiet", "--default", "shared", str(tmp_path / "remote"), cwd=clone)
    first, *changes = error_lines(clone)
    assert first == "headstart: uncommitted changes, which workers would not see. Commit these files:"
    assert changes == ["  M .dvc/config"]
    run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qam", "remote", cwd=clone)
    with FileLock(clone / ".cluster/lock"):
        assert error_lines(clone) == [
            "headstart: another `make cluster` is running in this folder. Wait for it or stop it."
        ]

    edit_cluster_yaml(clone, origin=str(ROOT))  # which does not have the clone's commit
    [line] = error_lines(clone)
    assert line.startswith(f"headstart: {ROOT} does not have this commit. Push it there or choose another one. Got ")
    edit_cluster_yaml(clone, origin=None)

    edit_cluster_yaml(clone, gpus=1)
    if not MISSING["ray"]() and not Path("/dev/nvidia0").exists():
        assert error_lines(clone) == [
            "headstart: no machine has 1 CPU and 1 GPU. Change gpus and cpus in cluster.yaml."
        ]
    edit_cluster_yaml(clone, gpus=0, ray={"address": "127.0.0.1:1"})
    if not MISSING["ray"]():
        [line] = error_lines(clone)
        assert line.startswith("headstart: cannot use Ray at 127.0.0.1:1: ")
    if not MISSING["slurm"]() and "SLURM_CONF" not in os.environ:
        [line] = error_lines(clone, "slurm")
        assert line.startswith("headstart: cannot read SLURM's queue: ")


def edit_cluster_yaml(clone: Path, **changes: object) -> None:
    path = clone / "cluster.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
