# SPDX-License-Identifier: Apache-2.0
"""A Ray cluster of two nodes on this machine; the second hides fp16_patch if told to. Prints what the check says."""

from __future__ import annotations

import sys

import ray
from ray.cluster_utils import Cluster

from fp16_patch.engines.ray.node_check import check_every_node
from fp16_patch.errors import Fp16PatchError

if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    hiding = {"PYTHONPATH": sys.argv[1]} if len(sys.argv) > 1 else {}
    cluster.add_node(num_cpus=1, env_vars=hiding)
    try:
        ray.init(address=cluster.address)
        assert len([node for node in ray.nodes() if node["Alive"]]) == 2
        try:
            check_every_node()
            print("every node is fit")
        except Fp16PatchError as error:
            print(error)
    finally:
        ray.shutdown()
        cluster.shutdown()
