# SPDX-License-Identifier: Apache-2.0
"""Check, before any worker starts, that every node of the Ray cluster has this package and the same versions."""

from __future__ import annotations

from fp16_patch.errors import Fp16PatchError, combine_errors
from fp16_patch.report.precision_report import versions

SECONDS = 120.0
"""Seconds that a node may take to answer."""

DECISIVE = ("fp16-patch", "verl", "openrlhf", "deepspeed", "vllm")
"""Distributions that must not differ between nodes: patches are checked against the driver's."""


def check_every_node() -> None:
    """Compare the versions of every node with the driver's.

    Raises:
        Fp16PatchError: If a node lacks this package, has other versions or does not answer; names every such node.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask = ray.remote(num_cpus=0)(versions)  # pickled by reference: fails on a node without this package
    calls = [  # not a dict: nodes may share an address
        (
            node["NodeManagerAddress"],
            ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    here = versions()
    problems: list[Fp16PatchError] = []
    for address, call in calls:
        try:
            problems += _differences(address, ray.get(call, timeout=SECONDS), here)
        except Exception as error:
            problems.append(_no_answer(address, error, here))
    if problems:
        raise combine_errors(problems)


def _no_answer(address: str, error: Exception, here: dict[str, str]) -> Fp16PatchError:
    missing = "No module named 'fp16_patch'" in str(error)
    found = "fp16-patch is not installed" if missing else f"no answer: {type(error).__name__}: {error}"
    return Fp16PatchError(
        f"node {address}: {found}",
        code="node-unreachable",
        allowed=f"fp16-patch=={here.get('fp16-patch')} on every node",
        next_step="install it in the environment of that node's Ray workers",
    )


def _release(version: str | None) -> str | None:
    """Drop the local part, such as +cpu or +cu129: the build may differ, the source must not."""
    return version.partition("+")[0] if version else None


def _differences(address: str, there: dict[str, str], here: dict[str, str]) -> list[Fp16PatchError]:
    return [
        Fp16PatchError(
            f"node {address} has {name} {there.get(name)}, the driver {here.get(name)}",
            code="node-differs",
            allowed="the same version on every node",
            next_step=f"install {name}=={here.get(name)} there",
        )
        for name in DECISIVE
        if _release(there.get(name)) != _release(here.get(name))
    ]
