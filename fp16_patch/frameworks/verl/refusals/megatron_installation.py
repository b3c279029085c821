# SPDX-License-Identifier: Apache-2.0
"""Check the packages behind verl's Megatron engine. Imports none of them."""

from __future__ import annotations

from fp16_patch.engines.megatron.refusals import refused_release
from fp16_patch.errors import Fp16PatchError


def installation_problems() -> list[Fp16PatchError]:
    """Return the packages of the Megatron engine that are missing or of an unsupported release."""
    return [*refused_release(), *refused_release("megatron-bridge", "==0.3.1")]
