# SPDX-License-Identifier: Apache-2.0
"""Define and check the sampling settings, before vLLM takes a minute to load."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from fp16_patch.errors import Fp16PatchError, combine_errors
from fp16_patch.lab.data.selection import SAMPLES


@dataclass(frozen=True)
class Sampling:
    """Hold the settings that define the samples. ``max_tokens`` limits one answer."""

    model: str
    samples: int = SAMPLES
    max_tokens: int = 8192
    temperature: float = 1.0
    top_p: float = 1.0
    dtype: str = "float16"
    tensor_parallel_size: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples > 1:
            temperature = (0 < self.temperature <= 2, "more than 0, at most 2; 0 only with --samples 1")
        else:
            temperature = (0 <= self.temperature <= 2, "0 to 2")
        found = {
            f"--temperature {self.temperature:g}": temperature,
            f"--top-p {self.top_p:g}": (0 < self.top_p <= 1, "more than 0, at most 1"),
            f"--seed {self.seed}": (0 <= self.seed < 2**32, f"0 to {2**32 - 1}"),
        }
        if wrong := [
            Fp16PatchError(what, code="value-not-allowed", allowed=allowed, next_step="correct it")
            for what, (fits, allowed) in found.items()
            if not fits
        ]:
            raise combine_errors(wrong)


def check_options(options: Iterable[str]) -> None:
    """Check ``--vllm`` options.

    Raises:
        Fp16PatchError: If the command itself sets one of them.
    """
    own = {field.name: f"--{field.name.replace('_', '-')}" for field in fields(Sampling)}
    own["max_model_len"] = "--max-tokens; the command adds the longest prompt to it"
    errors = [
        Fp16PatchError(f"--vllm {key}=...: the command sets it", code="option-reserved", next_step=f"use {own[key]}")
        for key in options
        if key in own
    ]
    if errors:
        raise combine_errors(errors)
