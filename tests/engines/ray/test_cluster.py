# SPDX-License-Identifier: Apache-2.0
"""A cluster that cannot be used is one error in seconds, before anything starts there."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from raising import check_error
from ray_nodes import RayNodes, ray_nodes

from fp16_patch.cli import main
from fp16_patch.engines.ray.cluster import cluster_problems
from fp16_patch.engines.ray.job import JOB_CONFIG

OPENRLHF = ["run", "--", sys.executable, "-m", "openrlhf.cli.train_ppo_ray"]


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray looks for a token


def check(code: str, *named: str, address: str | None = None, submit: bool = False, env: str | None = None) -> None:
    (problem,) = cluster_problems(address, env, submit=submit)
    check_error(problem, code, *named)


@pytest.fixture
def closed() -> Iterator[str]:
    """Return an address where nothing listens; its port is reserved."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{reserved.getsockname()[1]}"


def test_a_command_that_starts_its_own_cluster_has_no_problem(monkeypatch) -> None:
    assert cluster_problems() == cluster_problems("local") == cluster_problems("provider://my-cluster") == []
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert cluster_problems() == cluster_problems("auto") == cluster_problems("") == []


def test_auto_needs_a_running_cluster(monkeypatch) -> None:
    check("cluster-unreachable", "auto", address="auto")
    check("cluster-unreachable", "ray start --head", submit=True)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    check("cluster-unreachable", "auto")


@pytest.mark.parametrize("address", ["nowhere", "http://127.0.0.1:8265", "127.0.0.1:x", "[::1]"])
def test_what_is_not_an_address(address: str) -> None:
    check("cluster-address-invalid", address, address=address)


def test_an_address_that_does_not_answer(closed, monkeypatch, tmp_path, capsys) -> None:
    began = time.monotonic()
    check("cluster-unreachable", closed, address=closed)
    check("cluster-unreachable", closed, address=f"http://{closed}", submit=True)
    check("cluster-unreachable", "--address", submit=True)
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(closed)  # left by a cluster that was killed
    check("cluster-unreachable", closed)
    monkeypatch.setenv("RAY_ADDRESS", closed)
    check("cluster-unreachable", closed)
    assert main(OPENRLHF) == 2
    assert f"the Ray cluster at {closed} does not answer" in capsys.readouterr().err
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("text", ["{'env_vars': {}}", '["a"]', ""])
def test_a_runtime_environment_that_is_not_json(text: str) -> None:
    check("runtime-env-not-json", f"--runtime-env-json={text!r}", env=text)
    assert cluster_problems(None, '{"env_vars": {"A": "1"}}') == []


def test_a_job_configuration_that_is_not_json(monkeypatch, capsys) -> None:
    monkeypatch.setenv(JOB_CONFIG, "{x}")
    assert main(OPENRLHF) == 2
    assert f"{JOB_CONFIG}='{{x}}'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    with ray_nodes(tmp_path_factory.mktemp("cluster"), "--num-cpus=1") as nodes:
        yield nodes


@pytest.mark.distributed
@pytest.mark.timeout(240)
def test_the_token_of_a_real_cluster(cluster, monkeypatch) -> None:
    def everywhere(code: str, *named: str) -> None:
        check(code, *named, address=cluster.address)
        check(code, *named, address=cluster.dashboard, submit=True)

    everywhere("cluster-token-refused", "RAY_AUTH_MODE=None")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    check("cluster-token-refused", "missing", address=cluster.address)  # Ray aborts the process that asks
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another token, as long as the right")
    everywhere("cluster-token-refused", "wrong")
    for name, value in cluster.client.items():
        monkeypatch.setenv(name, value)
    assert cluster_problems() == []
    monkeypatch.delenv("RAY_ADDRESS")
    assert cluster_problems(cluster.dashboard, submit=True) == []
