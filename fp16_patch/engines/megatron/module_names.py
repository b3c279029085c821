# SPDX-License-Identifier: Apache-2.0
"""Name this rank's modules as in the whole model.

A pipeline stage counts its layers from 0, and a rank its experts: on two ranks different modules have the same name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def inner_model(chunk: Any) -> Any:
    """Return ``chunk`` without its wrappers, DistributedDataParallel and Float16Module."""
    from megatron.core.utils import unwrap_model

    return unwrap_model(chunk)


def named_modules(chunk: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name in the whole model, module) of a chunk without wrappers."""
    names: dict[str, str] = {"": ""}
    inside: dict[str, Any] = {}
    for own, module in chunk.named_modules():
        inside[own] = module
        parent, _, last = own.rpartition(".")
        if own:
            names[own] = f"{names[parent]}.{_number(last, module, inside, parent)}".removeprefix(".")
        yield names[own], module


def named_parameters(chunk: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name in the whole model, parameter). A parameter that is used twice comes once, under its first name."""
    seen: set[int] = set()
    for name, module in named_modules(chunk):
        for own, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{name}.{own}".removeprefix("."), parameter


def _number(last: str, module: Any, inside: dict[str, Any], parent: str) -> str:
    """Return the number of a layer or an expert in the whole model; any other ``last`` itself."""
    if not last.isdecimal():
        return last
    if parent.endswith("layers") and isinstance(number := getattr(module, "layer_number", None), int):
        return str(number - 1)
    if parent.endswith("experts.local_experts"):
        layer = inside[parent.removesuffix(".experts.local_experts")]
        return str(layer.local_expert_indices[int(last)])
    return last
