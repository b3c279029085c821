# SPDX-License-Identifier: Apache-2.0
"""An agent that passes sampling parameters of its own, which no configuration shows, in one request of step 3."""

from copy import deepcopy
from pathlib import Path

from openrlhf.utils.agent import SingleTurnAgentExecutor

TWO_STEPS = 2 * 8 * 4


class AgentExecutor(SingleTurnAgentExecutor):
    """OpenRLHF's own executor until then, with the reward of the other tests."""

    def __init__(self) -> None:
        super().__init__(str(Path(__file__).with_name("dense_reward.py")))
        self.requests = 0

    async def execute(self, prompt, label, sampling_params, *args, **kwargs):
        """Sample one answer of step 3 from the likeliest tokens only."""
        self.requests += 1
        if self.requests == TWO_STEPS + 1:
            sampling_params = deepcopy(sampling_params)
            sampling_params.top_p = 0.8
        return await super().execute(prompt, label, sampling_params, *args, **kwargs)
