# SPDX-License-Identifier: Apache-2.0
"""Check the nodes of an OpenRLHF run before any worker starts. ``controller.py`` checks those in use afterwards."""

from __future__ import annotations

from typing import Any

from fp16_patch.engines.ray import node_check
from fp16_patch.frameworks.openrlhf.releases import RELEASE
from fp16_patch.patching import ProcessKind, hook

BUNDLE = {"GPU": 1, "CPU": 1}
"""What OpenRLHF reserves for each worker, on any node that has it (``cli/train_ppo_ray.py``, ``PACK``)."""


@hook(
    "openrlhf.utils.utils:get_strategy",
    name="openrlhf-check-nodes",
    release=RELEASE,
    processes={ProcessKind.DRIVER},
    required=False,  # the driver has no ledger in the report; the controller checks the nodes in use
    reason="a node without this package, or with other versions, is named before any worker starts; OpenRLHF calls "
    "this right after ray.init",
)
def check_nodes(original: Any, args: Any) -> Any:
    """Ask the nodes that can hold a worker."""
    node_check.check_nodes_that_fit([BUNDLE])
    return original(args)
