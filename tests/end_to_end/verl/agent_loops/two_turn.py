# SPDX-License-Identifier: Apache-2.0
"""An agent loop of two turns with text of the environment between them, and sampling parameters of its own.

``AGENT_SAMPLING`` holds them as JSON. No configuration shows them.
"""

from __future__ import annotations

import json
import os
from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput, register

TURN_TOKENS, ENVIRONMENT_TOKENS = 8, 4


@register("two_turn")
class TwoTurn(AgentLoopBase):
    """Answer, read four tokens of the prompt again as the environment's, answer again."""

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> AgentLoopOutput:
        messages = list(kwargs["raw_prompt"])
        prompt = list(
            await self.ct_build_initial_tokens(messages, images=None, videos=None, audios=None, mm_inputs_out={})
        )
        own = {**sampling_params, **json.loads(os.environ.get("AGENT_SAMPLING", "{}")), "max_tokens": TURN_TOKENS}
        first = await self._answer(prompt, own)
        environment = prompt[:ENVIRONMENT_TOKENS]
        second = await self._answer([*prompt, *first.token_ids, *environment], own)
        length = self.rollout_config.response_length
        zeros = [0] * len(environment)
        return AgentLoopOutput(
            prompt_ids=prompt,
            response_ids=[*first.token_ids, *environment, *second.token_ids][:length],
            response_mask=[*[1] * len(first.token_ids), *zeros, *[1] * len(second.token_ids)][:length],
            response_logprobs=[*first.log_probs, *map(float, zeros), *second.log_probs][:length],
            num_turns=4,
            metrics={"generate_sequences": 0.0, "tool_calls": 0.0, "num_preempted": -1},
            extra_fields=first.extra_fields,
        )

    async def _answer(self, tokens: list[int], parameters: dict[str, Any]) -> Any:
        return await self.server_manager.generate(
            request_id=uuid4().hex, prompt_ids=tokens, sampling_params=dict(parameters)
        )
