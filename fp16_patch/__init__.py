# SPDX-License-Identifier: Apache-2.0
"""One flag that runs RL fine-tuning in FP16 on both engines, trainer and rollout, and proves it.

Importing this package changes nothing and imports none of torch, verl, vLLM or Ray.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fp16_patch.patching import Ledger, LedgerEntry
    from fp16_patch.precision import Precision

__version__ = "0.1.0"
__all__ = ["__version__", "disable", "enable", "status"]


def enable(precision: Precision | str = "fp16") -> None:
    """Arm this process and the processes it starts, for launch scripts that do not go through Hydra.

    Writes the environment variables the flag would, and patches verl's modules as they are imported.
    The configuration is the script's own: set the same keys that ``fp16-patch doctor`` lists.
    Raises :class:`~fp16_patch.errors.Fp16PatchError` when a patch does not fit what is installed.
    """
    import os

    from fp16_patch.precision import ENVIRONMENT_VARIABLE, Precision

    chosen = Precision(train=precision, rollout=precision) if isinstance(precision, str) else precision
    os.environ[ENVIRONMENT_VARIABLE] = chosen.to_environment()
    from fp16_patch.frameworks.verl.plan import activate

    activate()


def disable() -> list[LedgerEntry]:
    """Undo every patch of this process; returns those that someone else has wrapped since, left in force."""
    import os

    from fp16_patch.patching import undo
    from fp16_patch.precision import ENVIRONMENT_VARIABLE

    os.environ.pop(ENVIRONMENT_VARIABLE, None)
    return undo()


def status() -> Ledger:
    """This process's ledger: every patch, where, and what became of it."""
    from fp16_patch.patching import status

    return status()
