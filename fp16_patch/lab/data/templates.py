# SPDX-License-Identifier: Apache-2.0
"""Turn a question into a prompt. verl and OpenRLHF apply the tokenizer's chat template themselves."""

from __future__ import annotations

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.data.problem import Message, user_message

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
"""DeepSeek's advice for its R1 models, and Qwen2.5-Math's own system prompt."""

TEMPLATES: dict[str, tuple[Message, ...]] = {
    "r1_distill_qwen": user_message(f"{{question}} {BOXED}\n"),
    "qwen_math": (Message("system", BOXED), Message("user", "{question}")),
    "no": user_message("{question}"),
}
"""Names of the paper's scripts (oat/main.py). With the chat template of the model that each is named after, they give
the scripts' prompts."""

DEFAULT = "r1_distill_qwen"


def check(template: str) -> None:
    """Check a template.

    Raises:
        Fp16PatchError: If it is neither a name nor a text with ``{question}``.
    """
    if template not in TEMPLATES and "{question}" not in template:
        raise Fp16PatchError(
            f"--template {template!r} does not contain {{question}}",
            code="placeholder-missing",
            allowed=f"{', '.join(TEMPLATES)}, or a text with {{question}} in it",
            next_step="choose a name, or write {question} where the question goes",
        )


def prompt(question: str, template: str) -> tuple[Message, ...]:
    """Return the prompt that ``template`` makes of ``question``."""
    messages = TEMPLATES.get(template) or user_message(template)
    return tuple(Message(m.role, m.content.replace("{question}", question)) for m in messages)
