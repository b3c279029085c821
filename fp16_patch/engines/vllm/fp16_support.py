# SPDX-License-Identifier: Apache-2.0
"""Model types that vLLM refuses to run in float16, read from the installed vLLM."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
from pathlib import Path
from typing import Any


def float16_refusing_model_types() -> dict[str, str]:
    """Model type -> vLLM's reason; empty when vLLM is not installed or no longer keeps such a table.

    Read from the source of ``vllm/config/model.py`` because importing vLLM takes tens of seconds.
    """
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return {}
    source = Path(next(iter(spec.submodule_search_locations)), "config", "model.py")
    if not source.is_file():
        return {}
    for node in ast.parse(source.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(getattr(target, "id", None) == "_FLOAT16_NOT_SUPPORTED_MODELS" for target in targets):
            table = ast.literal_eval(node.value)  # type: ignore[attr-defined]
            return {str(key): str(reason) for key, reason in table.items()}
    return {}


def model_type_of(model: str) -> tuple[str, ...]:
    """Return the ``model_type`` of a local model folder or a hub id, outer and text model's.

    Empty when its ``config.json`` cannot be read here: vLLM itself then refuses, later and as loudly.
    """
    described = describe(model)
    types = (described.get("model_type"), (described.get("text_config") or {}).get("model_type"))
    return tuple(dict.fromkeys(t for t in types if t))


def describe(model: str) -> dict[str, Any]:
    """Return the ``config.json`` of a local model folder or a hub id; empty when it cannot be read here."""
    local: Path | None = Path(model).expanduser() / "config.json"
    if local is not None and not local.is_file():
        local = _from_the_hub(model)
    found: dict[str, Any] = json.loads(local.read_text()) if local is not None else {}
    return found


@functools.cache  # without a network the hub's client tries for half a minute
def _from_the_hub(model: str) -> Path | None:
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(model, "config.json"))
    except Exception:  # offline, no such model, a remote file system: not ours to report
        return None
