# SPDX-License-Identifier: Apache-2.0
"""A reward that an untrained policy gets different amounts of, so that there is something to learn from."""

import torch


def reward_func(queries, prompts, labels):
    scores = torch.tensor([sum(map(ord, query)) % 7 / 7 for query in queries])
    return {"rewards": scores, "scores": scores, "extra_logs": {}}
