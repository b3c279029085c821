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
            if any(word.partition("=")[0] in ("--cfg", "-c") for word in sys.argv[1:]):
                _let_the_config_resolve()
        search_path.append(provider="fp16_patch", path="pkg://fp16_patch.frameworks.verl.conf")


def _let_the_config_resolve() -> None:
    """Resolve what stops a run without the flag's callback: Hydra's ``--cfg`` prints the configuration, no more."""
    from omegaconf import OmegaConf

    said = "no: --cfg shows the configuration before the flag's callback changes it"
    OmegaConf.register_new_resolver("fp16_patch_callback_did_not_run", lambda: said, replace=True)


def _check_settings(words: list[str]) -> None:
    from fp16_patch.errors import Fp16PatchError
    from fp16_patch.precision.setting_names import check_overrides

    try:
        check_overrides(words)
    except Fp16PatchError as error:
        print(f"\n{error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
