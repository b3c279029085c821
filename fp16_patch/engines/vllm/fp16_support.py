# SPDX-License-Identifier: Apache-2.0
"""Find the model types that the installed vLLM refuses to run in float16."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
from pathlib import Path
from typing import Any


def float16_refusing_model_types() -> dict[str, str]:
    """Return model type -> vLLM's reason; empty if vLLM is not installed or has no such table.

    Reads the source, ``vllm/config/model.py``, because importing vLLM takes tens of seconds.
    """
    source = vllm_source("config", "model.py")
    for node in ast.parse(source or "").body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(getattr(target, "id", None) == "_FLOAT16_NOT_SUPPORTED_MODELS" for target in targets):
            table = ast.literal_eval(node.value)  # type: ignore[attr-defined]
            return {str(key): str(reason) for key, reason in table.items()}
    return {}


def vllm_source(*path: str) -> str | None:
    """Return the text of a file of the installed vLLM; None if vLLM is not installed or has no such file."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(next(iter(spec.submodule_search_locations)), *path)
    return file.read_text() if file.is_file() else None


def model_type_of(model: str) -> tuple[str, ...]:
    """Return the ``model_type`` of a local model folder or a hub id, and of its text model.

    Empty if its ``config.json`` cannot be read here; vLLM itself then refuses the model later.
    """
    return model_types_in(read_model_config(model))


def model_types_in(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the ``model_type`` of a model's ``config.json``, and of its text model."""
    types = (config.get("model_type"), (config.get("text_config") or {}).get("model_type"))
    return tuple(dict.fromkeys(t for t in types if t))


def read_model_config(model: str) -> dict[str, Any]:
    """Return the ``config.json`` of a local model folder or a hub id; empty if it cannot be read here."""
    local: Path | None = Path(model).expanduser() / "config.json"
    if local is not None and not local.is_file():
        local = _from_the_hub(model)
    found: dict[str, Any] = json.loads(local.read_text()) if local is not None else {}
    return found


@functools.cache  # offline the hub's client retries for half a minute
def _from_the_hub(model: str) -> Path | None:
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(model, "config.json"))
    except Exception:  # offline, no such model, a remote file system: vLLM reports it
        return None
