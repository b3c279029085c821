# SPDX-License-Identifier: Apache-2.0
"""Check that a model is a folder, in the hub's cache, or on the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fp16_patch.errors import Fp16PatchError

_CHECK = "check the path"


def missing_model(key: str, model: str) -> Iterator[Fp16PatchError]:
    """Yield an error unless ``model`` is a model's folder, or a hub id that is in the cache or on the hub."""
    folder = Path(model).expanduser()
    if folder.exists():
        if not (folder / "config.json").is_file():
            yield Fp16PatchError(
                f"{key}={model} has no config.json",
                code="model-not-found",
                allowed="a model's folder",
                next_step=_CHECK,
            )
        return
    if model.startswith((".", "/", "~")) or model.endswith("/") or model.count("/") > 1:
        yield Fp16PatchError(f"{key}={model}: no such folder", code="model-not-found", next_step=_CHECK)
        return
    if cached_config(model) is not None:
        return
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(model, timeout=10)
    except Exception as error:  # offline, no such model, or no permission
        yield Fp16PatchError(
            f"{key}={model} is not a folder, not in the cache and not on the hub ({type(error).__name__})",
            code="model-not-found",
            allowed="a model's folder, or a hub id",
            next_step=f"run `hf download {model}` on a machine with a network, or pass a folder",
        )


def cached_config(model: str) -> Path | None:
    """Return the ``config.json`` of a hub model in the cache; None if it is not cached, or ``model`` is a folder."""
    if Path(model).expanduser().exists():
        return None
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model, "config.json")
    return Path(config) if isinstance(config, str) else None
