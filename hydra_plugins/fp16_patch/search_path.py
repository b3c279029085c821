# SPDX-License-Identifier: Apache-2.0
"""Lets every Hydra application find the config group ``precision``.

Hydra discovers plugins in the namespace package ``hydra_plugins``; this is the whole plugin.
"""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class PrecisionSearchPath(SearchPathPlugin):
    """Adds ``fp16_patch.frameworks.verl.conf`` to the search path; nothing else changes."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="fp16_patch", path="pkg://fp16_patch.frameworks.verl.conf")
