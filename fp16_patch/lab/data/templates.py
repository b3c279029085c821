# SPDX-License-Identifier: Apache-2.0
"""What a question becomes before the tokenizer's own chat template, which verl and OpenRLHF apply themselves."""

from __future__ import annotations

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.data.problem import Message, asked

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
"""DeepSeek's advice for its R1 models, and Qwen2.5-Math's own system prompt."""

TEMPLATES: dict[str, tuple[Message, ...]] = {
    "r1_distill_qwen": asked(f"{{question}} {BOXED}\n"),
    "qwen_math": (Message("system", BOXED), Message("user", "{question}")),
    "no": asked("{question}"),
}
"""Names of the paper's scripts (oat/main.py). With the chat template of the model that each is named after, they come
out as there."""

DEFAULT = "r1_distill_qwen"


def check(template: str) -> None:
    """Raises ``Fp16PatchError`` where ``template`` is neither a name nor a text with ``{question}`` in it."""
    if template not in TEMPLATES and "{question}" not in template:
        raise Fp16PatchError(
            f"--template {template!r} has no place for the question",
            code="placeholder-missing",
            allowed=f"{', '.join(TEMPLATES)}, or a text with {{question}} in it",
        )


def prompt(question: str, template: str) -> tuple[Message, ...]:
    """The messages that ``template`` makes of ``question``."""
    messages = TEMPLATES.get(template) or asked(template)
    return tuple(Message(m.role, m.content.replace("{question}", question)) for m in messages)
