# SPDX-License-Identifier: Apache-2.0
"""What of an answer goes through OpenRLHF's vLLM once more, and who else may use vLLM then. Real: tests/end_to_end."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from fp16_patch.frameworks.openrlhf.rollout_trace import _alone, token_ids


class Calls:
    """Ray's actors and ``ray.get``, as far as a trace keeps others out; a vLLM that sleeps needs a GPU."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def get(self, call: str, timeout: float | None = None) -> None:
        self.made.append(call)

    def __getattr__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda: name)


def sample(images: list[object]) -> SimpleNamespace:
    """Return an answer of two turns: tokens 12, 13 and 16 are sampled, 14 and 15 come from the environment."""
    mask = torch.tensor([[0, 1, 1, 0, 0, 1]])
    return SimpleNamespace(sequences=torch.arange(10, 17)[None], action_mask=mask, images=images)


@pytest.mark.parametrize(("length", "last"), [(0, 11), (1, 12), (2, 15), (None, 15)])
def test_the_tokens_before_a_sampled_one_decided_it(length: int | None, last: int) -> None:
    assert token_ids(sample([None]), length) == list(range(10, last + 1))


def test_a_prompt_with_images_is_not_traced() -> None:
    with pytest.raises(RuntimeError, match="images"):
        token_ids(sample([["photo.png"]]), 0)


@pytest.mark.parametrize(
    ("asynchronous", "sleeps", "before", "after"),
    [
        (False, False, [], []),
        (False, True, ["wake_up"], ["sleep"]),
        (True, False, ["acquire"], ["release"]),
    ],
)
def test_vllm_is_awake_and_without_other_answers_during_a_trace(
    asynchronous: bool, sleeps: bool, before: list[str], after: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls()
    monkeypatch.setitem(sys.modules, "ray", calls)
    train, vllm = SimpleNamespace(partial_rollout_enable=False), SimpleNamespace(enable_sleep=sleeps)
    controller = SimpleNamespace(args=SimpleNamespace(train=train, vllm=vllm), vllm_engines=[calls])
    if asynchronous:
        controller.vllm_lock = calls
    with _alone(controller):
        assert calls.made == before
    assert calls.made == before + after
    train.partial_rollout_enable = True
    if asynchronous:
        with pytest.raises(RuntimeError, match="partial_rollout_enable"), _alone(controller):
            pytest.fail("other answers are in vLLM")
