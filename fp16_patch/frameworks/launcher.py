# SPDX-License-Identifier: Apache-2.0
"""``fp16-patch run [KEY=VALUE ...] -- python -m MODULE ...``: the user's own command, with the flag on it.

The interpreter and the arguments stay the user's. verl gets Hydra overrides; OpenRLHF has no way in, so its module is
run by ours, in the same process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fp16_patch.errors import Fp16PatchError
from fp16_patch.precision.setting_names import check_overrides, check_settings

VERL = ("verl.trainer.main_ppo",)
OPENRLHF = ("openrlhf.cli.train_ppo_ray",)
STARTER = "fp16_patch.frameworks.openrlhf"
FLAG = "+precision@_global_"


def command_with_flag(settings: Sequence[str], command: Sequence[str]) -> list[str]:
    """Return the command to execute in place of ``command``; ``settings`` are ``fp16_patch.<name>=<value>``.

    Raises :class:`Fp16PatchError` on a command that is not ``python [options] -m MODULE [arguments]`` of a framework
    this package knows, and on a word before the ``--`` that is no setting of it.
    """
    check_settings(settings)
    words = list(command)
    module_at = words.index("-m") + 1 if "-m" in words else len(words)
    module = words[module_at] if module_at < len(words) else None
    if module is None or not Path(words[0]).name.startswith("python"):
        raise Fp16PatchError(
            f"{' '.join(words[:3]) or 'an empty command'} ... is not a command this package can start",
            code="command-not-supported",
            allowed=" or ".join(f"python -m {name} ..." for name in (*OPENRLHF, *VERL)),
            next_step="give the trainer's own command after the --; with `ray job submit`, fp16-patch run goes inside",
        )
    head, arguments = words[:module_at], words[module_at + 1 :]
    if module in VERL:
        check_overrides(arguments)
        flag = [] if any(word.startswith(FLAG) for word in arguments) else [f"{FLAG}=fp16"]
        return [*head, module, *arguments, *flag, *settings]
    if module in OPENRLHF:
        return [*head, STARTER, *settings, "--", module, *arguments]
    raise Fp16PatchError(
        f"python -m {module} is not a trainer this package knows",
        code="command-not-supported",
        allowed=", ".join((*OPENRLHF, *VERL)),
        next_step="start it without fp16-patch",
    )
