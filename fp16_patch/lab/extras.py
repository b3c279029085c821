# SPDX-License-Identifier: Apache-2.0
"""Packages that only some commands need. Each is missing in some environment, which is one clear error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fp16_patch.errors import Fp16PatchError

LAB = {
    "datasets": "datasets",
    "huggingface_hub": "huggingface-hub",
    "jinja2": "jinja2",
    "math_verify": "math-verify",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "pyarrow": "pyarrow",
    "tensorboard": "tensorboard",
}
"""Module to distribution of what ``fp16-patch[lab]`` installs."""
FRAMEWORK = ("pandas", "ray", "tokenizers", "torch", "transformers", "vllm")
"""Modules that an environment of verl or OpenRLHF has, in the versions it needs."""


def missing(module: str, purpose: str = "this command") -> Fp16PatchError:
    """Return the error for a ``module`` of :data:`LAB` or :data:`FRAMEWORK` that ``purpose`` needs."""
    if module in LAB:
        next_step = "pip install 'fp16-patch[lab]'"
    else:
        next_step = f"run it in an environment of verl or OpenRLHF, which has {module}"
    return Fp16PatchError(
        f"{LAB.get(module, module)} is not installed, and {purpose} needs it", code="not-installed", next_step=next_step
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
