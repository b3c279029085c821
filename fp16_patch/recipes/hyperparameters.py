# SPDX-License-Identifier: Apache-2.0
"""The hyperparameters of a recipe, in the paper's words: each has a value and a source. Frameworks translate them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fp16_patch.errors import Fp16PatchError

SOURCES = {
    "script": "oat/scripts or oat/main.py of sail-sg/Precision-RL",
    "fork": "the script, configuration or code of sail-sg/Precision-RL-verl, read in a public copy",
    "figure": "read by eye off a published figure",
    "second-hand": "a transcription of the paper's text, not checked against it",
    "choice": "ours: the note says why",
}
"""Where a number of a recipe may be from."""

_WHOLE, _NUMBER, _PAIR = "a whole number", "a number", "a list of two numbers"
NAMES = {
    "prompts": (_WHOLE, "problems a step"),
    "rollouts": (_WHOLE, "answers sampled to each problem"),
    "updates": (_WHOLE, "optimizer steps a step, over equal parts of the batch"),
    "steps": (_WHOLE, "steps of the run"),
    "prompt_tokens": (_WHOLE, "longest prompt"),
    "response_tokens": (_WHOLE, "longest answer; also the constant L that Dr.GRPO divides by"),
    "temperature": (_NUMBER, "of the sampling"),
    "top_p": (_NUMBER, "of the sampling"),
    "learning_rate": (_NUMBER, "constant after the warm-up"),
    "warmup_steps": (_WHOLE, "updates of linear warm-up"),
    "weight_decay": (_NUMBER, "of AdamW"),
    "adam_betas": (_PAIR, "of AdamW"),
    "adam_eps": (_NUMBER, "of AdamW"),
    "gradient_clip": (_NUMBER, "largest norm of the gradient"),
    "clip_low": (_NUMBER, "the ratio is clipped at 1 - clip_low"),
    "clip_high": (_NUMBER, "and at 1 + clip_high"),
    "dual_clip": (_NUMBER, "largest ratio that counts where the advantage is negative"),
    "correction_cap": (_NUMBER, "C: largest importance weight, clamped (TIS) or masked (MIS) beyond"),
    "lora_rank": (_WHOLE, "of the adapters, on every linear layer; merged for the rollout"),
    "lora_alpha": (_WHOLE, "of the adapters"),
    "eval_every": (_WHOLE, "steps between evaluations"),
    "eval_rollouts": (_WHOLE, "answers to each problem of an evaluation"),
    "eval_temperature": (_NUMBER, "of an evaluation"),
    "eval_top_p": (_NUMBER, "of an evaluation"),
}
"""Name -> what its value is, and what it means."""

ALWAYS = ("prompts", "rollouts", "updates", "steps", "prompt_tokens", "response_tokens", "learning_rate")
"""What every recipe with hyperparameters gives; an algorithm needs further ones."""

OF_THE_SCALE = frozenset(ALWAYS) | {"warmup_steps", "eval_every", "eval_rollouts"}
"""What a toy section may change."""


@dataclass(frozen=True)
class Setting:
    """The value of one hyperparameter, where it is from (see ``SOURCES``), and a note where sources disagree."""

    value: object
    source: str
    note: str = ""


Settings = Mapping[str, Setting]


def values(*groups: Settings) -> dict[str, object]:
    """Name -> value; later groups win."""
    return {name: setting.value for group in groups for name, setting in group.items()}


def problems(settings: Settings, key: str) -> Iterator[Fp16PatchError]:
    """Unknown names and sources, values that cannot be, and choices that no note explains."""
    for name, setting in settings.items():
        if name not in NAMES:
            yield Fp16PatchError(f"unknown key {key}.{name}", allowed=", ".join(NAMES))
            continue
        kind = NAMES[name][0]
        if not _is(kind, setting.value):
            yield Fp16PatchError(f"{key}.{name}.value={setting.value!r}", allowed=f"{kind}, not negative")
        yield from source_problems(setting.source, f"{key}.{name}")
        if setting.source == "choice" and not setting.note:
            yield Fp16PatchError(f"{key}.{name} is our choice and has no note", next_step="say why in its note")
    updates, prompts = (settings[name].value if name in settings else 1 for name in ("updates", "prompts"))
    if isinstance(updates, int) and isinstance(prompts, int) and updates > 0 and prompts % updates:
        yield Fp16PatchError(f"{key}: {prompts} prompts do not make {updates} equal updates")


def source_problems(source: str, key: str) -> Iterator[Fp16PatchError]:
    """A source that is none."""
    if source not in SOURCES:
        yield Fp16PatchError(f"{key}.source={source!r} is unknown", allowed=", ".join(SOURCES))


def _is(kind: str, value: object) -> bool:
    if kind == _PAIR:
        return isinstance(value, list) and len(value) == 2 and all(_is(_NUMBER, item) for item in value)
    allowed = (int,) if kind == _WHOLE else (int, float)
    return isinstance(value, allowed) and not isinstance(value, bool) and value >= 0
