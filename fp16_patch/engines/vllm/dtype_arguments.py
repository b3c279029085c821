# SPDX-License-Identifier: Apache-2.0
"""Find those of vLLM's engine arguments that decide a dtype. Imports no vLLM.

Every argument whose name ends in ``dtype`` counts, also one that a later release adds, and so do those that quantize
or that read further arguments from a file. Some arguments are mappings, or JSON, with such names inside.
"""

from __future__ import annotations

import ast
import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from fp16_patch.engines.vllm.fp16_support import vllm_source
from fp16_patch.errors import Fp16PatchError
from fp16_patch.precision import short_name

QUANTIZING = ("quantization", "quantization_config")
"""Arguments that may not be set at all."""

FROM_A_FILE = "config"
"""The argument that names a file of further arguments."""

WIDER = ("mamba_cache_dtype", "mamba_ssm_cache_dtype")
"""Caches that may be FP32: some models keep the states that they sum over all tokens in FP32."""


def refused_arguments(arguments: Mapping[Any, Any], dtype: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield (key, allowed values) of each argument that does not give ``dtype``.

    Args:
        arguments: vLLM's arguments as plain data, named as on its command line: with ``-`` or ``_``, and abbreviated
            or not.
        dtype: The rollout's, such as ``"fp16"``.

    ``key`` is the argument's, or ``argument.inner`` for a name inside a mapping.
    """
    for key, value in arguments.items():
        if key == FROM_A_FILE and value is not None:
            yield str(key), (None,)
        else:
            yield from _refused(str(key), _full_name(str(key)), value, dtype)


def _refused(key: str, name: str, value: Any, dtype: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    allowed = _allowed(name, dtype)
    if allowed and not _accepts(allowed, value):
        yield key, allowed
    inside = _parse(value)
    if isinstance(inside, Mapping):
        pairs = ((f"{key}.{inner}", str(inner).replace("-", "_"), inside[inner]) for inner in inside)
        refused = [found for pair in pairs for found in _refused(*pair, dtype)]
        # A value inside a text has no key of its own.
        yield from refused if isinstance(value, Mapping) else [(key, (None,))] if refused else []


def _allowed(name: str, dtype: str) -> tuple[Any, ...]:
    """Return the values that an argument may have; empty for one that decides no dtype."""
    if name in QUANTIZING:
        return (None,)
    if not name.endswith("dtype"):
        return ()
    return (None, "auto", dtype, *(("fp32",) if name in WIDER else ()))


def _accepts(allowed: tuple[Any, ...], value: Any) -> bool:
    if value in allowed:
        return True
    try:
        return short_name("", value) in allowed
    except Fp16PatchError:  # no dtype that the flag knows, such as fp8
        return False


def _parse(value: Any) -> Any:
    """Return the mapping that a text holds as JSON, else the value itself."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _full_name(key: str) -> str:
    """Return the argument's whole name: vLLM's parser takes ``-`` for ``_``, and unambiguous abbreviations."""
    name = key.replace("-", "_")
    known = argument_names()
    completions = [other for other in known if other.startswith(name)]
    return completions[0] if name not in known and len(completions) == 1 else name


@functools.cache
def argument_names() -> frozenset[str]:
    """Return the names of vLLM's engine arguments, read from its source; empty if vLLM is not installed."""
    source = vllm_source("engine", "arg_utils.py")
    if source is None:
        return frozenset()
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    fields = [field for node in classes if node.name.endswith("EngineArgs") for field in node.body]
    return frozenset(
        field.target.id for field in fields if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    )
