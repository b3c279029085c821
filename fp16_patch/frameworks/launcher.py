# SPDX-License-Identifier: Apache-2.0
"""Put the flag on the user's command: ``fp16-patch run [KEY=VALUE ...] -- python -m MODULE ...``.

The interpreter and the arguments stay the user's. verl gets Hydra overrides. OpenRLHF cannot be extended by its own
arguments, so a module of this package runs OpenRLHF's in the same process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fp16_patch.frameworks.advice import check_flag, check_openrlhf_arguments, command_not_supported
from fp16_patch.frameworks.user_command import OPENRLHF, VERL
from fp16_patch.precision.setting_names import FLAG, check_overrides, check_settings
from fp16_patch.precision.setting_values import check_repeated

STARTER = "fp16_patch.frameworks.openrlhf"
HYDRA_OPTIONS_WITH_A_VALUE = frozenset(
    (
        *("--cfg", "-c", "--package", "-p", "--info", "-i", "--experimental-rerun"),
        *("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    )
)


def command_with_flag(settings: Sequence[str], command: Sequence[str]) -> list[str]:
    """Return the command to execute in place of ``command``; ``settings`` are ``fp16_patch.<name>=<value>``.

    Raises:
        Fp16PatchError: If the command is not ``python [options] -m MODULE [arguments]`` of a supported trainer, or a
            setting is unknown.
    """
    check_settings(settings)
    words = list(command)
    module_at = words.index("-m") + 1 if "-m" in words else len(words)
    module = words[module_at] if module_at < len(words) else ""
    head, arguments = words[:module_at], words[module_at + 1 :]
    if not head or not Path(head[0]).name.startswith("python") or module not in (*OPENRLHF, *VERL):
        raise command_not_supported(words, settings)
    if module in OPENRLHF:
        check_openrlhf_arguments(settings, arguments)
        return [*head, STARTER, *settings, "--", module, *arguments]
    return [*head, module, *verl_arguments(settings, arguments)]


def check_values(settings: Sequence[str]) -> None:
    """Check the settings' values, for a command that only prints: the flag's own code does not run in it.

    Raises:
        Fp16PatchError: If a setting is unknown or its value is not allowed.
    """
    from fp16_patch.frameworks.openrlhf.config import settings as checked

    check_settings(settings)
    checked([word for word in settings if "${" not in word])


def verl_arguments(settings: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a main of verl with the flag on them; FP16 if they name no precision.

    Raises:
        Fp16PatchError: If a setting is unknown, or has one value before the ``--`` and another after it, or the flag
            lacks its ``+``.
    """
    check_flag(arguments)
    check_overrides(arguments)
    check_repeated(settings, arguments)
    flag = [] if any(word.startswith(FLAG) for word in arguments) else [f"{FLAG}=fp16"]
    at = _first_override(arguments)
    return [*arguments[:at], *flag, *settings, *arguments[at:]]


def _first_override(arguments: Sequence[str]) -> int:
    """Return the place of Hydra's first override, 0 if there is none.

    Hydra takes all overrides in one block, before or after its options (``--cfg job``). Where a key is given twice, the
    later value wins: the user's.
    """
    before = ("", *arguments)
    for at, word in enumerate(arguments):
        if not word.startswith("-") and before[at] not in HYDRA_OPTIONS_WITH_A_VALUE:
            return at
    return 0
