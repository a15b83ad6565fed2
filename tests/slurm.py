"""A SLURM of one controller and three nodes on this machine, for tests: Debian's packages, run as root."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import psutil

NODES = ("node1", "node2", "node3")
CONFIGURATION = """\
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
    """Why there can be no SLURM here; nothing if there can."""
    if os.geteuid() != 0:
        return "SLURM wants root"
    if importlib.util.find_spec("submitit") is None:
        return "submitit is not installed: make backends"
    lacking = [name for name in ("slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    return f"there is no {', '.join(lacking)}: install slurmctld, slurmd and slurm-client" if lacking else ""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Nodes:
    """The controller and its nodes."""

    names = NODES
    settings: ClassVar = {"slurm": {"partition": None, "account": None, "minutes": 240, "memory_gb": 1, "options": {}}}

    def __init__(self, folder: Path, cpus: int, prepared: Mapping[str, str]) -> None:
        self.folder = folder
        self._prepared = prepared
        (folder / "state").mkdir(parents=True)
        controller, *ports = free_ports(1 + len(NODES))
        nodes = [f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=4000\n"
                 for node, port in zip(NODES, ports, strict=True)]  # fmt: skip
        self.conf = folder / "slurm.conf"
        self.conf.write_text(CONFIGURATION.format(controller=controller, folder=folder) + "".join(nodes))
        self.environment = {**os.environ, "SLURM_CONF": str(self.conf)}
        self.daemons = {"slurmctld": self._start("slurmctld", "-D")}
        for node in NODES:
            self.daemons[node] = self.start(node)

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                start_new_session=True)  # fmt: skip

    def start(self, node: str) -> subprocess.Popen[bytes]:
        """Start ``node``, with file systems of its own where something is prepared there."""
        command = ["slurmd", "-D", "-N", node]
        if node in self._prepared:
            command = ["unshare", "--mount", "sh", "-c", f'{self._prepared[node]} && exec "$@"', "sh", *command]
        return self._start(*command)

    def call(self, *command: str) -> str:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True).stdout

    def wait(self) -> None:
        """Until all nodes are there."""
        for _ in range(150):
            try:
                if self.call("sinfo", "--noheader", "--Node", "--format=%T").split() == ["idle"] * len(NODES):
                    return
            except subprocess.CalledProcessError:
                pass
            time.sleep(0.2)
        raise TimeoutError((self.folder / "slurmctld.log").read_text())

    def kill(self, node: str) -> None:
        """As when its power goes: its daemon, and all that runs there."""
        running = self.call("squeue", "--noheader", f"--nodelist={node}", "--states=all", "--format=%A").split()
        os.killpg(self.daemons[node].pid, signal.SIGKILL)
        self.daemons[node].wait()
        for process in psutil.process_iter(["cmdline", "environ"]):
            steps = [part for part in process.info["cmdline"] or () if part.startswith("slurmstepd: [")]
            here = any(step.startswith(f"slurmstepd: [{job}.") for step in steps for job in running)
            if here or self._is_on(node, process.info["environ"] or {}):
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
def slurm(folder: Path, cpus: int = 1, prepared: Mapping[str, str] = {}) -> Iterator[Nodes]:
    """Start a controller and its nodes.

    Args:
        cpus: of each node.
        prepared: a shell's command by node, which can mount what only that node sees.
    """
    running = Nodes(folder, cpus, prepared)
    try:
        running.wait()
        yield running
    finally:
        running.stop()
