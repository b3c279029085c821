# SPDX-License-Identifier: Apache-2.0
"""A Ray cluster of three nodes on this machine: the driver's, one with a GPU, and one that hides fp16_patch.

Prints what the checks of nodes say, one ``=== step`` after the other.
"""

from __future__ import annotations

import sys

import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fp16_patch.engines.ray.node_check import check_nodes_in_use, check_nodes_that_fit
from fp16_patch.errors import Fp16PatchError


class Worker:
    """An actor of the run that needs nothing of this package."""

    def ping(self) -> None:
        """Answer, so that the actor lives."""


def on(node, **resources):
    """Start an actor on a node."""
    where = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    actor = ray.remote(Worker).options(scheduling_strategy=where, **resources).remote()
    ray.get(actor.ping.remote())
    return actor


def step(name, check, *arguments):
    """Print what a check says."""
    print(f"=== {name}")
    try:
        check(*arguments)
        print("fit")
    except Fp16PatchError as error:
        print(error.codes, error)


if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ours = cluster.add_node(num_cpus=2, num_gpus=1)
    theirs = cluster.add_node(num_cpus=4, env_vars={"PYTHONPATH": sys.argv[1]})
    try:
        ray.init(address=cluster.address)
        assert len([node for node in ray.nodes() if node["Alive"]]) == 3
        step("their node has no GPU", check_nodes_that_fit, [{"GPU": 1, "CPU": 1}])
        step("no node has so many", check_nodes_that_fit, [{"GPU": 9}])
        mine = on(ours, num_gpus=1)
        step("our node is busy", check_nodes_that_fit, [{"GPU": 1}])
        step("an actor on our node", check_nodes_in_use)
        step("their node fits", check_nodes_that_fit, [{"GPU": 9}, {"CPU": 3}])
        there = on(theirs)
        step("an actor on their node", check_nodes_in_use)
        ray.shutdown()
        hook = {"worker_process_setup_hook": "fp16_patch.platforms.activate"}  # as on OpenRLHF
        ray.init(address=cluster.address, runtime_env=hook)
        step("a setup hook of this package", check_nodes_that_fit, [{"CPU": 3}])
    finally:
        ray.shutdown()
        cluster.shutdown()
