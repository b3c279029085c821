# SPDX-License-Identifier: Apache-2.0
"""Check that the nodes of a run have this package and the same versions.

Before the workers start, the nodes that can hold them are asked; later, every node that an actor of the run lives on.
Other nodes of a shared cluster belong to others and are not asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fp16_patch.errors import Fp16PatchError, combine_errors
from fp16_patch.log import logger
from fp16_patch.report.precision_report import versions

SECONDS = 120.0
"""Seconds that a node may take to answer."""

DECISIVE = ("fp16-patch", "verl", "openrlhf", "deepspeed", "vllm")
"""Distributions that must not differ between nodes: patches are checked against the driver's."""

Node = Mapping[str, Any]  # as in ray.nodes()
Resources = Mapping[str, float]

_asked: set[str] = set()  # ids of the nodes that have answered this process
_not_asked: set[str] = set()  # ids of those that the log names


def check_nodes_that_fit(needs: Sequence[Resources]) -> None:
    """Ask the nodes that have the free resources of one of ``needs``, those that a trainer reserves on one node.

    If none has them free, ask those that have them at all.

    Raises:
        Fp16PatchError: If a node lacks this package, has other versions or does not answer; names every such node.
    """
    from ray._private.state import available_resources_per_node

    nodes, free = _alive(), available_resources_per_node()
    fitting = [node for node in nodes if _fits(free.get(node["NodeID"], {}), needs)]
    fitting = fitting or [node for node in nodes if _fits(node["Resources"], needs)]
    wanted = " or ".join(_describe(need) for need in needs)
    for node in nodes:
        if node not in fitting:
            has = _describe(free.get(node["NodeID"], {}))
            _log_not_asked(node, f"it has {has} free, and the workers need {wanted} on one node")
    _ask(fitting)


def check_nodes_in_use() -> None:
    """Ask every node that a living actor of this job is on, once.

    Raises:
        Fp16PatchError: As :func:`check_nodes_that_fit`.
    """
    import ray
    from ray._private.state import actors

    job = ray._private.worker.global_worker.current_job_id
    used = {actor["Address"]["NodeID"] for actor in actors(job_id=job, actor_state_name="ALIVE").values()}
    nodes = _alive()
    for node in nodes:
        if node["NodeID"] not in used | _asked:
            _log_not_asked(node, "no actor of this run lives there")
    _ask(node for node in nodes if node["NodeID"] in used)


def _alive() -> list[Node]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _fits(resources: Resources, needs: Iterable[Resources]) -> bool:
    return any(all(resources.get(name, 0) >= amount for name, amount in need.items()) for need in needs)


def _describe(resources: Resources) -> str:
    named = {name: amount for name in ("GPU", "NPU", "CPU") if (amount := resources.get(name))}
    return ", ".join(f"{amount:g} {name}" for name, amount in named.items()) or "no CPU"


def _name(node: Node) -> str:
    """Return address and host, since nodes may share an address."""
    address, name = node["NodeManagerAddress"], node.get("NodeName")
    return f"{address} ({name if name not in (None, '', address) else node.get('NodeManagerHostname')})"


def _log_not_asked(node: Node, why: str) -> None:
    if node["NodeID"] not in _not_asked:
        _not_asked.add(node["NodeID"])
        logger.info("node %s was not asked whether it has fp16-patch: %s", _name(node), why)


def _ask(nodes: Iterable[Node]) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask = ray.remote(num_cpus=0)(versions)  # pickled by reference: fails on a node without this package
    calls = [
        (node, ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote())
        for node in nodes
        if node["NodeID"] not in _asked
    ]
    here = versions()
    problems: list[Fp16PatchError] = []
    for node, call in calls:
        try:
            problems += _differences(_name(node), ray.get(call, timeout=SECONDS), here)
            _asked.add(node["NodeID"])
        except Exception as error:
            problems.append(_no_answer(_name(node), error, here))
    if problems:
        raise combine_errors(problems)


def _no_answer(name: str, error: Exception, here: dict[str, str]) -> Fp16PatchError:
    if "No module named 'fp16_patch'" in str(error):
        found = "fp16-patch is not installed"
    elif type(error).__name__ == "WorkerCrashedError":  # Ray's log has the reason, the error has not
        found = "its workers die before they run anything: fp16-patch is not installed there, or its setup hook fails"
    else:
        found = f"no answer: {type(error).__name__}: {error}"
    return Fp16PatchError(
        f"node {name}: {found}",
        code="node-unreachable",
        allowed=f"fp16-patch=={here.get('fp16-patch')} on every node of the run",
        next_step="install it in the environment of that node's Ray workers, or stop `ray` on a node that this run "
        "should not use",
    )


def _release(version: str | None) -> str | None:
    """Drop the local part, such as +cpu or +cu129: the build may differ, the source must not."""
    return version.partition("+")[0] if version else None


def _differences(name: str, there: dict[str, str], here: dict[str, str]) -> list[Fp16PatchError]:
    return [
        Fp16PatchError(
            f"node {name} has {package} {there.get(package)}, the driver {here.get(package)}",
            code="node-differs",
            allowed="the same version on every node",
            next_step=f"install {package}=={here.get(package)} there",
        )
        for package in DECISIVE
        if _release(there.get(package)) != _release(here.get(package))
    ]
