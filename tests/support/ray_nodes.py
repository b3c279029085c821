# SPDX-License-Identifier: Apache-2.0
"""Start the nodes of a Ray cluster on this machine with ``ray start``, as a user does, and end all their processes."""

from __future__ import annotations

import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fp16_patch.lab.launch.supervisor import Supervisor

SECONDS = 120.0
"""Seconds that a node may take to start."""
TOKEN = "0123456789abcdef" * 3

HIDE = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "fp16_patch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
"""
"""A ``sitecustomize.py`` on the ``PYTHONPATH`` of a node hides this package from its processes."""


@dataclass
class RayNodes:
    """A cluster of one node; :meth:`add` starts another."""

    folder: Path
    stack: ExitStack
    temporary: str
    port: int
    dashboard_port: int
    nodes: list[Supervisor] = field(default_factory=list)

    @property
    def address(self) -> str:
        """The address for ``RAY_ADDRESS``."""
        return f"127.0.0.1:{self.port}"

    @property
    def dashboard(self) -> str:
        """The address for ``ray job submit``."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def client(self) -> dict[str, str]:
        """The environment of a client of this cluster, with the right token."""
        return {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}

    def add(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        """Start a node and wait until it runs."""
        log = self.folder / f"node-{len(self.nodes)}.log"
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        (agent,) = _free_ports(1)  # jobs are submitted to the head's agent; by default every node has the same port
        command += ["--object-store-memory=80000000", f"--dashboard-agent-listen-port={agent}", *arguments]
        own = {"RAY_TMPDIR": self.temporary, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_ADDRESS": ""}
        node = Supervisor(command, {**own, **(environment or {})}, log)
        self.stack.callback(node.close)
        self.nodes.append(node)
        wait_for(lambda: "will now block forever" in log.read_text(), node, log)


@contextmanager
def ray_nodes(folder: Path, *arguments: str) -> Iterator[RayNodes]:
    """Start a head node with token authentication and a dashboard; ``arguments`` are those of ``ray start``."""
    folder.mkdir(exist_ok=True)
    with ExitStack() as stack:
        temporary = tempfile.mkdtemp(prefix="fp16p")  # a socket's path has at most 107 characters
        cluster = RayNodes(folder, stack, temporary, *_free_ports(2))
        ports = (f"--port={cluster.port}", f"--dashboard-port={cluster.dashboard_port}")
        cluster.add("--head", *ports, "--include-dashboard=true", *arguments)
        yield cluster


def wait_for(done: Callable[[], bool], process: Supervisor, log: Path, seconds: float = SECONDS) -> None:
    """Wait until ``done()``; fail with the log if the process ends before or the time is over."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline or not (process.running() or done()):
            raise AssertionError(f"{log.name}:\n{log.read_text(errors='replace')[-4000:]}")
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
