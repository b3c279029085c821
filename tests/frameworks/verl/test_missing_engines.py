# SPDX-License-Identifier: Apache-2.0
"""Each vLLM engine that the configuration names must be in the precision report."""

from __future__ import annotations

import pytest
from raising import check_error

from fp16_patch.frameworks.verl.reports import missing_engines

EVERY = (
    "reward.reward_model.enable=True",
    "reward.reward_model.rollout.name=vllm",
    "distillation.enabled=True",
)


def workers(*roles: str) -> list[dict]:
    return [{"process": f"vLLM worker 0 of server {i}", "roles": {role: {}}} for i, role in enumerate(roles)]


def test_a_run_whose_engines_have_all_reported(compose):
    assert missing_engines(compose(*EVERY), workers("reward model", "teacher", "rollout", "rollout")) == []
    assert missing_engines(compose(), workers("rollout")) == []


@pytest.mark.parametrize(
    ("seen", "section"),
    [
        (("rollout", "teacher"), "reward.reward_model.rollout"),
        (("rollout", "reward model"), "distillation.teacher_models.teacher_model.inference"),
        (("reward model", "teacher"), "actor_rollout_ref.rollout"),
    ],
)
def test_an_engine_that_has_not_reported(compose, seen, section):
    (error,) = missing_engines(compose(*EVERY), workers(*seen))
    check_error(error, "process-missing", section)
