# SPDX-License-Identifier: Apache-2.0
"""Find out in seconds whether a Ray cluster answers and accepts this token. Starts no job and no process there.

``ray.init`` waits for 40 seconds and more, and Ray's client aborts its process if it misses a token. So another process
asks.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fp16_patch.engines.ray import job
from fp16_patch.errors import Fp16PatchError

CONNECT_S = 5.0
"""Seconds in which the address must accept a connection."""
ANSWER_S = 20.0
"""Seconds in which Ray must answer, the import of Ray included."""

_ASK = """
import sys
try:
    if sys.argv[1].startswith("http"):
        from ray.job_submission import JobSubmissionClient
        JobSubmissionClient(sys.argv[1])
    else:
        from ray._raylet import GcsClient
        GcsClient(address=sys.argv[1])
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def cluster_problems(
    address: str | None = None, runtime_env: str | None = None, *, submit: bool = False, python: str = sys.executable
) -> list[Fp16PatchError]:
    """Return why a command cannot use its cluster; empty if it starts a local one.

    Args:
        address: ``ray.init``'s address, or that of ``ray job submit``. Without one Ray's variables count.
        runtime_env: The text of ``--runtime-env-json``.
        submit: Whether the command is ``ray job submit``, which asks the dashboard.
        python: The interpreter that has Ray.
    """
    problems = []
    try:
        if runtime_env is not None:
            _parse(runtime_env)
        job.runtime_env()
    except Fp16PatchError as error:
        problems.append(error)
    target = _target(address, submit)
    if target == "auto":
        problems.append(_no_answer("'auto'", "no cluster was started on this machine"))
    elif target:
        problems += _answer_problems(target, submit, python)
    elif submit:
        step = "give the dashboard's address, --address http://HOST:8265, or start a cluster: ray start --head"
        problems.append(_no_answer("(no --address, no RAY_ADDRESS)", "no cluster was started on this machine", step))
    return problems


def _parse(text: str) -> None:
    try:
        found = json.loads(text)
        why = "" if isinstance(found, dict) else f"it is a {type(found).__name__}"
    except ValueError as error:
        why = str(error)
    if why:
        raise Fp16PatchError(
            f"--runtime-env-json={text!r} is not a JSON mapping: {why}",
            code="runtime-env-not-json",
            allowed="""'{"env_vars": {"NAME": "value"}}', in single quotes for the shell""",
            next_step="correct it, or write it as YAML into a file for --runtime-env",
        )


def runtime_env_problems(environment: Mapping[str, Any], working_dir: str | None) -> list[Fp16PatchError]:
    """Return what Ray would refuse in the runtime environment of ``ray job submit``."""
    found = []
    variables = environment.get("env_vars") or {}
    if not isinstance(variables, dict) or not all(isinstance(v, str) for pair in variables.items() for v in pair):
        found.append(("env_vars", variables, "a mapping of text to text", "quote the values, numbers too"))
    folder = working_dir or environment.get("working_dir")
    if folder is not None and not isinstance(folder, str):
        found.append(("working_dir", folder, "the path of a folder, or a URI", "correct it"))
    elif folder and "://" not in folder and not os.path.exists(os.path.expanduser(folder)):
        found.append(("working_dir", folder, "a folder that exists, or a URI", "correct the path"))
    return [
        Fp16PatchError(
            f"the runtime environment has {name}={value!r}", code="runtime-env-refused", allowed=allowed, next_step=step
        )
        for name, value, allowed, step in found
    ]


def _target(address: str | None, submit: bool) -> str | None:
    """Return the address that the command connects to, None if it starts a cluster of its own.

    Return ``"auto"`` if it wants the cluster of this machine and none was started: Ray then raises.

    Ray's variables win over ``ray job submit --address`` (``ray.dashboard.utils``), not over ``ray.init``'s.
    """
    if submit:
        address = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or address
    elif address in (None, "", "auto"):
        address = os.environ.get("RAY_ADDRESS") or address
    if address and address != "auto":
        return None if address == "local" else address
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:  # written by `ray start`
        found = Path(folder, "ray", "ray_current_cluster").read_text().strip()
    except OSError:
        found = ""
    return found or ("auto" if address == "auto" and not submit else None)


def _answer_problems(address: str, submit: bool, python: str) -> list[Fp16PatchError]:
    parts = urlsplit(address if "://" in address else f"ray-gcs://{address}")
    if parts.scheme not in ("ray-gcs", "ray", "http", "https"):  # a provider's own, which Ray loads a module for
        return []
    try:
        host, port = parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        host = port = None
    if not host or not port or (parts.scheme.startswith("http") and not submit):
        dashboard = ", or http://HOST:PORT of its dashboard (port 8265)" if submit else ""
        return [
            Fp16PatchError(
                f"{address!r} is not an address of a Ray cluster",
                code="cluster-address-invalid",
                allowed=f"HOST:PORT of `ray start --head` (port 6379){dashboard}",
                next_step="correct --address, ray_kwargs.ray_init.address or RAY_ADDRESS",
            )
        ]
    try:
        socket.create_connection((host, port), timeout=CONNECT_S).close()
    except OSError as error:
        return [_no_answer(address, str(error))]
    if parts.scheme == "ray":  # Ray Client: the port answers, and Ray itself asks for the token
        return []
    try:
        asked = subprocess.run([python, "-c", _ASK, address], capture_output=True, timeout=ANSWER_S, check=False)
    except subprocess.TimeoutExpired:
        return [_no_answer(address, f"no answer of Ray within {ANSWER_S:g} s; is this the port of another program?")]
    said = asked.stderr.decode(errors="replace").strip()
    if asked.returncode == 0:
        return []
    if "AuthenticationError" in said or "couldn't find an authentication token" in said:
        return [_token_refused(address)]
    return [_no_answer(address, said.splitlines()[-1] if said else f"exit code {asked.returncode}")]


def _no_answer(address: str, why: str, next_step: str | None = None) -> Fp16PatchError:
    return Fp16PatchError(
        f"the Ray cluster at {address} does not answer: {why}",
        code="cluster-unreachable",
        allowed="the address of a running cluster, from this machine",
        next_step=next_step
        or "check with `ray status --address HOST:PORT`. To start a local cluster instead, unset RAY_ADDRESS; a "
        "cluster of this machine that was killed is still named in /tmp/ray/ray_current_cluster",
    )


def _token_refused(address: str) -> Fp16PatchError:
    mode = os.environ.get("RAY_AUTH_MODE")
    return Fp16PatchError(
        f"the Ray cluster at {address} refuses this process: "
        + ("its token is missing or wrong" if mode == "token" else f"no token is sent with RAY_AUTH_MODE={mode}"),
        code="cluster-token-refused",
        allowed="RAY_AUTH_MODE=token with the cluster's token in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or "
        "~/.ray/auth_token",
        next_step="copy the token of the head node" if mode == "token" else "set RAY_AUTH_MODE=token",
    )
