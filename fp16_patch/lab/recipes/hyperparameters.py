# SPDX-License-Identifier: Apache-2.0
"""The hyperparameters of a recipe, in the paper's words: each has a value and a source. Frameworks translate them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fp16_patch.errors import Fp16PatchError

SOURCES = {
    "script": "oat/scripts or oat/main.py of sail-sg/Precision-RL",
    "fork": "the script, configuration or code of sail-sg/Precision-RL-verl, read in a public copy",
    "figure": "read by eye off a published figure",
    "second-hand": "a transcription of the paper's text, not checked against it",
    "choice": "ours: the note says why",
}
"""The sources that a number of a recipe may name."""

_COUNT, _WHOLE = "a whole number, 1 or more", "a whole number, not negative"
_GROUP = "a whole number, 2 or more: an advantage is relative to the other answers'"
_NUMBER, _POSITIVE, _SHARE = "a number, not negative", "a number, more than 0", "a number, more than 0, at most 1"
_PAIR = "a list of two numbers, not negative"
_FITS: Mapping[str, Callable[[Any], bool]] = {
    _COUNT: lambda value: _is_whole(value) and value >= 1,
    _GROUP: lambda value: _is_whole(value) and value >= 2,
    _WHOLE: lambda value: _is_whole(value) and value >= 0,
    _NUMBER: lambda value: _is_number(value) and value >= 0,
    _POSITIVE: lambda value: _is_number(value) and value > 0,
    _SHARE: lambda value: _is_number(value) and 0 < value <= 1,
    _PAIR: lambda value: isinstance(value, list) and len(value) == 2 and all(map(_FITS[_NUMBER], value)),
}
NAMES = {
    "prompts": (_COUNT, "problems a step"),
    "rollouts": (_GROUP, "answers sampled to each problem"),
    "updates": (_COUNT, "optimizer steps a step, over equal parts of the batch"),
    "steps": (_COUNT, "steps of the run"),
    "prompt_tokens": (_COUNT, "longest prompt"),
    "response_tokens": (_COUNT, "longest answer; also the constant L that Dr.GRPO divides by"),
    "temperature": (_POSITIVE, "of the sampling"),
    "top_p": (_SHARE, "of the sampling"),
    "learning_rate": (_NUMBER, "constant after the warm-up"),
    "warmup_steps": (_WHOLE, "updates of linear warm-up"),
    "weight_decay": (_NUMBER, "of AdamW"),
    "adam_betas": (_PAIR, "of AdamW"),
    "adam_eps": (_NUMBER, "of AdamW"),
    "gradient_clip": (_POSITIVE, "largest norm of the gradient"),
    "clip_low": (_NUMBER, "the ratio is clipped at 1 - clip_low"),
    "clip_high": (_NUMBER, "and at 1 + clip_high"),
    "dual_clip": (_POSITIVE, "largest ratio that counts where the advantage is negative"),
    "correction_cap": (_POSITIVE, "C: largest importance weight, clamped (TIS) or masked (MIS) beyond"),
    "lora_rank": (_COUNT, "of the adapters, on every linear layer; merged for the rollout"),
    "lora_alpha": (_COUNT, "of the adapters"),
    "eval_every": (_WHOLE, "steps between evaluations"),
    "eval_rollouts": (_COUNT, "answers to each problem of an evaluation"),
    "eval_temperature": (_NUMBER, "of an evaluation"),
    "eval_top_p": (_SHARE, "of an evaluation"),
}
"""Each name with the kind of its value and its meaning."""

ALWAYS = ("prompts", "rollouts", "updates", "steps", "prompt_tokens", "response_tokens", "learning_rate")
"""The hyperparameters that every recipe gives; an algorithm may need more."""

OF_THE_SCALE = frozenset(ALWAYS) | {"warmup_steps", "eval_every", "eval_rollouts"}
"""The hyperparameters that a toy section may change."""


@dataclass(frozen=True)
class Setting:
    """The value of one hyperparameter, its source (one of ``SOURCES``), and a note where sources disagree."""

    value: object
    source: str
    note: str = ""


Settings = Mapping[str, Setting]


def values(*groups: Settings) -> dict[str, object]:
    """Return each name with its value; a later group replaces an earlier one's."""
    return {name: setting.value for group in groups for name, setting in group.items()}


def problems(settings: Settings, key: str) -> Iterator[Fp16PatchError]:
    """Yield an error for each unknown name or source, value out of range, and choice without a note."""
    for name, setting in settings.items():
        if name not in NAMES:
            yield Fp16PatchError(f"unknown key {key}.{name}", code="unknown-key", allowed=", ".join(NAMES))
            continue
        kind = NAMES[name][0]
        if not _FITS[kind](setting.value):
            yield Fp16PatchError(f"{key}.{name}.value={setting.value!r}", code="value-not-allowed", allowed=kind)
        if setting.source not in SOURCES:
            what = f"{key}.{name}.source={setting.source!r} is unknown"
            yield Fp16PatchError(what, code="value-not-allowed", allowed=", ".join(SOURCES))
        if setting.source == "choice" and not setting.note:
            what = f"{key}.{name} is our choice and has no note"
            yield Fp16PatchError(what, code="note-missing", next_step="say why in its note")
    updates, prompts = (settings[name].value if name in settings else 1 for name in ("updates", "prompts"))
    if isinstance(updates, int) and isinstance(prompts, int) and updates > 0 and prompts % updates:
        yield Fp16PatchError(f"{key}: {prompts} prompts do not make {updates} equal updates", code="value-not-allowed")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_whole(value) or (isinstance(value, float) and math.isfinite(value))
