# SPDX-License-Identifier: Apache-2.0
"""Let every Hydra application find the config group ``precision``.

Hydra discovers plugins in the namespace package ``hydra_plugins``; this is the whole plugin.
"""

import sys

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class PrecisionSearchPath(SearchPathPlugin):
    """Add ``fp16_patch.frameworks.verl.conf`` to the search path, and change nothing else.

    It also checks the flag and the settings: once Hydra reads the command line, a misspelt one is Hydra's error.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folder of the config group. Exit with 2 if the flag or a setting is misspelt."""
        if any(word.startswith("+precision@_global_") for word in sys.argv[1:]):
            _check_settings(sys.argv[1:])
        search_path.append(provider="fp16_patch", path="pkg://fp16_patch.frameworks.verl.conf")


def _check_settings(words: list[str]) -> None:
    from fp16_patch.errors import Fp16PatchError
    from fp16_patch.precision.setting_names import check_overrides

    try:
        check_overrides(words)
    except Fp16PatchError as error:
        print(f"\n{error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
