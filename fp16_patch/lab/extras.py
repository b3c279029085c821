# SPDX-License-Identifier: Apache-2.0
"""Packages that only some commands need. Each is missing in some environment, which is one clear error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fp16_patch.errors import Fp16PatchError

LAB = ("datasets", "huggingface_hub", "jinja2", "math_verify", "matplotlib", "numpy", "pyarrow", "tensorboard")
"""Modules that ``fp16-patch[lab]`` installs. The distributions have the same names, with ``-`` for ``_``."""
FRAMEWORK = ("pandas", "ray", "tokenizers", "torch", "transformers", "vllm")
"""Modules that an environment of verl or OpenRLHF has, in the versions it needs."""


def missing(module: str, purpose: str = "this command") -> Fp16PatchError:
    """Return the error for a ``module`` of :data:`LAB` or :data:`FRAMEWORK` that ``purpose`` needs."""
    name = module.replace("_", "-")
    install = "pip install 'fp16-patch[lab]'"
    return Fp16PatchError(
        f"{name} is not installed, and {purpose} needs it",
        code="not-installed",
        next_step=install if module in LAB else f"run it in an environment of verl or OpenRLHF, which has {name}",
    )


@contextmanager
def required(purpose: str = "this command") -> Iterator[None]:
    """Raise :class:`Fp16PatchError` in place of the ``ModuleNotFoundError`` of a package listed here."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in LAB and module not in FRAMEWORK:
            raise
        raise missing(module, purpose) from error
