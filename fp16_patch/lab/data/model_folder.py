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
                f"{key}={model} holds no config.json",
                code="model-not-found",
                allowed="a model's folder",
                next_step=_CHECK,
            )
        return
    if model.startswith((".", "/", "~")) or model.endswith("/") or model.count("/") > 1:
        yield Fp16PatchError(f"{key}={model}: no such folder", code="model-not-found", next_step=_CHECK)
        return
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(model, "config.json"), str):
        return
    try:
        HfApi().model_info(model, timeout=10)
    except Exception as error:  # offline, no such model, no permission: the hub's own words say which
        yield Fp16PatchError(
            f"{key}={model}: no such folder, not in the cache, and the hub does not give it ({type(error).__name__})",
            code="model-not-found",
            next_step=f"hf download {model}, where there is a network; or give {key}= a folder",
        )
