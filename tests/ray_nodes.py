"""A Ray cluster of a head and three nodes on this machine, for tests."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def missing() -> str:
    """Return why Ray cannot run here; empty if it can."""
    return "" if importlib.util.find_spec("ray") else "Ray is not installed: make backends"


class Nodes:
    """A head without CPUs for tasks, and its nodes."""

    names = ("node1", "node2", "node3")

    def __init__(self, cpus: int) -> None:
        from ray.cluster_utils import Cluster

        self._cpus = cpus
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self._nodes: dict[str, Any] = {name: self._add() for name in self.names}
        self.environment = dict(os.environ)
        self.settings = {"ray": {"address": self.cluster.address}}

    def _add(self) -> Any:
        return self.cluster.add_node(num_cpus=self._cpus, include_dashboard=False)

    def kill(self, name: str) -> None:
        """Kill the Ray processes of a node. Unlike in a power failure, child processes of its jobs survive at first."""
        self.cluster.remove_node(self._nodes[name], allow_graceful=False)

    def revive(self, name: str) -> None:
        self._nodes[name] = self._add()

    def stop(self) -> None:
        self.cluster.shutdown()


@contextmanager
def ray_nodes(folder: Path, cpus: int = 1) -> Iterator[Nodes]:
    """Start a cluster whose nodes have ``cpus`` CPUs each."""
    nodes = Nodes(cpus)
    try:
        yield nodes
    finally:
        nodes.stop()
