# SPDX-License-Identifier: Apache-2.0
"""Every process of an OpenRLHF run in one report, checked and published. Runs in the controller."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from fp16_patch import envs
from fp16_patch.frameworks.openrlhf import reports as collect
from fp16_patch.patching import status
from fp16_patch.precision import Precision, long_name
from fp16_patch.report import precision_report as report
from fp16_patch.report.process_report import require, this_process

Controller = Any  # openrlhf.trainer.ppo_trainer.PPOTrainer, or ppo_trainer_async.TrainingActor, never imported here

_BESIDE = "_fp16_patch_beside"  # on the async controller: what the processes beside it reported before they were busy


def gather(controller: Controller) -> list[dict[str, Any]]:
    """Every process's report, or an :class:`Fp16PatchError` naming those that are missing or unproven."""
    from fp16_patch.frameworks.openrlhf.plan import REQUIRED, SHIPPED

    asynchronous = controller.args.train.async_enable
    kind = "async controller" if asynchronous else "controller"
    roles = {
        "actor": controller.actor_model_group,
        "reference": controller.reference_model_group,
        "critic": controller.critic_model_group,
        "reward": controller.reward_model_group,
    }
    reports = {
        kind: [this_process(kind, collect.with_shipped(status(), type(controller), SHIPPED[kind]), {})],
        **(getattr(controller, _BESIDE, {"coordinator": [], "sampler": []}) if asynchronous else {}),
        **collect.from_trainers(roles),
        **collect.from_rollout(controller.vllm_engines, controller.args.vllm.tensor_parallel_size),
    }
    require(reports, REQUIRED)
    return [report for some in reports.values() for report in some]


def gather_with(controller: Controller, beside: dict[str, list[dict[str, Any]]]) -> None:
    """Gather for the async controller, from now on with the reports of the other processes too."""
    setattr(controller, _BESIDE, beside)
    gather(controller)


def publish(controller: Controller, when: str) -> None:
    """Gather, check against the flag, print (first time) and save."""
    record = json.loads(os.environ[envs.RUN_RECORD])
    driver = {"process": "driver", **record["driver"], "ledger": [], "roles": {}}
    reports = [driver, *gather(controller)]
    precision = Precision.current()
    report.publish(precision, reports, record["changes"], record["report_path"], when, _deepspeeds_own(precision))


def _deepspeeds_own(precision: Precision) -> Mapping[str, tuple[str, ...]]:
    """DeepSpeed sends gradients between ranks in the train dtype, and in BF16 adds them up in it too."""
    half = (long_name(precision.train_dtype),)
    return {"gradient_reduction": half} | ({"gradient_accumulation": half} if precision.train_dtype == "bf16" else {})
