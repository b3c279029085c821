# SPDX-License-Identifier: Apache-2.0
"""One problem as every part of this package knows it: what the policy is asked, and the answer that is right."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """One turn of a chat; ``role`` is user or system."""

    role: str
    content: str

    def as_dict(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class Problem:
    """``prompt`` before the tokenizer's chat template; ``source`` is the name of the dataset, for verl's reward."""

    prompt: tuple[Message, ...]
    answer: str
    source: str
    ability: str = "math"

    @property
    def messages(self) -> list[dict[str, str]]:
        return [message.as_dict() for message in self.prompt]

    @property
    def key(self) -> str:
        """Names the problem in files, wherever in a dataset it stands: a digest of what the policy is asked."""
        return hashlib.sha256(json.dumps(self.messages).encode()).hexdigest()[:16]


def asked(text: str) -> tuple[Message, ...]:
    """The prompt of a single user message."""
    return (Message("user", text),)
