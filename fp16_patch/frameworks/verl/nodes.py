# SPDX-License-Identifier: Apache-2.0
"""Check the nodes of a verl run before any worker starts. ``controller.py`` checks those in use afterwards."""

from __future__ import annotations

from typing import Any

from fp16_patch.engines.ray import node_check
from fp16_patch.frameworks.verl.releases import TASK_RUNNER
from fp16_patch.patching import hook


@hook(
    "verl.single_controller.ray.base:ResourcePoolManager.create_resource_pool",
    name="check-nodes",
    **TASK_RUNNER,
    reason="a node without this package, or with other versions, is named before any worker starts; the pools say "
    "which nodes can hold the workers",
)
def check_nodes(original: Any, self: Any) -> Any:
    """Ask the nodes that can hold one node's part of a pool. verl reserves each part on one node (``STRICT_PACK``)."""
    from verl.plugin.platform import get_platform

    device = get_platform().ray_resource_name()
    sizes = sorted({size for sizes in self.resource_pool_spec.values() for size in sizes})
    node_check.check_nodes_that_fit([{device: size, "CPU": size * self.max_colocate_count} for size in sizes])
    return original(self)
