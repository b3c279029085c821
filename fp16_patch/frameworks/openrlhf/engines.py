# SPDX-License-Identifier: Apache-2.0
"""Where OpenRLHF's models keep their DeepSpeed engines, and what is noted of the tensors that leave them."""

from __future__ import annotations

from typing import Any

from fp16_patch.report.observed_dtypes import record_dtype, recorded_dtypes


def engine_of(model: Any) -> Any:
    """``model`` is OpenRLHF's Actor around an engine, or an engine itself (critic and reward)."""
    inner = getattr(model, "model", None)
    return inner if hasattr(inner, "backward") else model


def watch(model: Any) -> None:
    """Note the dtypes of logits, log-probs, values and rewards as they pass; changes nothing."""
    engine = engine_of(model)
    engine.module.register_forward_hook(lambda _module, _inputs, output: _note(engine, output))
    if engine is not model:
        model.register_forward_hook(lambda _module, _inputs, output: _note(engine, output, "log_probs"))


def _note(engine: Any, output: Any, name: str = "values") -> None:
    first = output[0] if isinstance(output, tuple) else output
    if hasattr(first, "dtype"):
        record_dtype(engine, name, first.dtype)
    elif (logits := getattr(first, "logits", None)) is not None and "logits" not in recorded_dtypes(engine):
        record_dtype(engine, "logits", logits.dtype)  # the first: OpenRLHF replaces them by FP32 copies later
