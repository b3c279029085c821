# SPDX-License-Identifier: Apache-2.0
"""Define a problem: the prompt and the right answer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Message:
    """Hold one turn of a chat; ``role`` is user or system."""

    role: str
    content: str


@dataclass(frozen=True)
class Problem:
    """Hold the prompt before the chat template, the right answer, and the dataset's name for verl's reward."""

    prompt: tuple[Message, ...]
    answer: str
    source: str
    ability: str = "math"

    @property
    def messages(self) -> list[dict[str, str]]:
        """Return the prompt as chat templates take it."""
        return [asdict(message) for message in self.prompt]

    @property
    def key(self) -> str:
        """Return a digest of the prompt, which identifies the problem in files."""
        return hashlib.sha256(json.dumps(self.messages).encode()).hexdigest()[:16]


def user_message(text: str) -> tuple[Message, ...]:
    """Return the prompt of a single user message."""
    return (Message("user", text),)
