"""A SLURM cluster of a controller and three nodes on this machine, for tests. Needs Debian's packages and root."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar

import psutil

NODES = ("node1", "node2", "node3")
SLURM_CONF = """\
ClusterName=headstart
SlurmctldHost=localhost
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
CryptoType=crypto/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue=1
ReturnToService=2
SlurmdTimeout=5
KillWait=30
MinJobAge=60
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=batch_sched_delay=0,sched_min_interval=200000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Return why SLURM cannot run here; empty if it can."""
    if os.geteuid() != 0:
        return "SLURM needs root"
    if importlib.util.find_spec("submitit") is None:
        return "submitit is not installed: make backends"
    programs = [name for name in ("slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    return f"{', '.join(programs)} not found: install slurmctld, slurmd and slurm-client" if programs else ""


def free_ports(count: int) -> list[int]:
    """Return ``count`` different ports of the loopback interface that are free now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


class Nodes:
    """A controller and its nodes."""

    names = NODES
    settings: ClassVar = {
        "slurm": {"partition": None, "account": None, "time_limit_minutes": 240, "memory_gb": 1, "options": {}}
    }

    def __init__(self, folder: Path, cpus: int, setup: Mapping[str, str]) -> None:
        self.folder = folder
        self._setup = setup
        (folder / "state").mkdir(parents=True)
        controller, *ports = free_ports(1 + len(NODES))
        nodes = [
            f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=4000\n"
            for node, port in zip(NODES, ports, strict=True)
        ]
        self.conf = folder / "slurm.conf"
        self.conf.write_text(SLURM_CONF.format(controller=controller, folder=folder) + "".join(nodes))
        self.environment = {**os.environ, "SLURM_CONF": str(self.conf)}
        self.daemons = {"slurmctld": self._start("slurmctld", "-D")}
        for node in NODES:
            self.daemons[node] = self.start(node)

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def start(self, node: str) -> subprocess.Popen[bytes]:
        """Start ``node``. Its setup command, if it has one, runs first, in a mount namespace of the node."""
        command = ["slurmd", "-D", "-N", node]
        if node in self._setup:
            command = ["unshare", "--mount", "sh", "-c", f'{self._setup[node]} && exec "$@"', "sh", *command]
        return self._start(*command)

    def call(self, *command: str) -> str:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True).stdout

    def wait(self) -> None:
        """Wait until all nodes are idle."""
        for _ in range(150):
            try:
                if self.call("sinfo", "--noheader", "--Node", "--format=%T").split() == ["idle"] * len(NODES):
                    return
            except subprocess.CalledProcessError:
                pass
            time.sleep(0.2)
        raise TimeoutError((self.folder / "slurmctld.log").read_text())

    def kill(self, node: str) -> None:
        """Kill the daemon of ``node`` and all of its jobs, as a power failure would."""
        job_ids = self.call("squeue", "--noheader", f"--nodelist={node}", "--states=all", "--format=%A").split()
        os.killpg(self.daemons[node].pid, signal.SIGKILL)
        self.daemons[node].wait()
        for process in psutil.process_iter(["cmdline", "environ"]):
            titles = [word for word in process.info["cmdline"] or () if word.startswith("slurmstepd: [")]
            is_step = any(title.startswith(f"slurmstepd: [{job_id}.") for title in titles for job_id in job_ids)
            if is_step or self._is_on(node, process.info["environ"] or {}):
                process.kill()

    def _is_on(self, node: str, environment: dict[str, str]) -> bool:
        return environment.get("SLURMD_NODENAME") == node and environment.get("SLURM_CONF") == str(self.conf)

    def revive(self, node: str) -> None:
        self.daemons[node] = self.start(node)

    def stop(self) -> None:
        for node in NODES:
            self.kill(node)
        os.killpg(self.daemons["slurmctld"].pid, signal.SIGKILL)
        self.daemons["slurmctld"].wait()


@contextmanager
def slurm(folder: Path, cpus: int = 1, setup: Mapping[str, str] = {}) -> Iterator[Nodes]:
    """Start a controller and its nodes.

    Args:
        cpus: CPUs per node.
        setup: a shell command by node, which can mount file systems that only that node sees.
    """
    nodes = Nodes(folder, cpus, setup)
    try:
        nodes.wait()
        yield nodes
    finally:
        nodes.stop()
