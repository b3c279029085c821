# SPDX-License-Identifier: Apache-2.0
"""Put patches in place during one call only, or on one object only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fp16_patch.patching import ledger
from fp16_patch.patching.applying import make_function, record
from fp16_patch.patching.binding import MARK, Binding
from fp16_patch.patching.checks import check_source, refusal
from fp16_patch.patching.patch import Patch


@contextmanager
def opened(patch: Patch, *context: Any) -> Iterator[None]:
    """Put the function that ``patch.make(original, *context)`` returns at the target, and the original back.

    Only the name of the target changes: other names of the same function keep it.

    Raises:
        Fp16PatchError: If the patch does not fit what is installed.
    """
    _check(patch)
    binding = Binding.at(patch.target)
    before = binding.own
    binding.set(make_function(patch, binding.raw, *context))
    try:
        yield
    finally:
        binding.set(before)


def attach(patch: Patch, instance: Any, *context: Any) -> None:
    """Put the function at the target's name on ``instance``, for the instance's lifetime. Again is a no-op.

    Raises:
        Fp16PatchError: If the patch does not fit what is installed.
    """
    name = patch.target.rpartition(".")[2]
    original = getattr(instance, name)
    if getattr(original, MARK, None) == patch.name:
        return
    _check(patch)
    setattr(instance, name, make_function(patch, original, *context))


def _check(patch: Patch) -> None:
    if ledger.current.get(patch.name) is None:
        finding = check_source(patch)
        record(finding)
        if not finding.fits:
            raise refusal(finding)
