# SPDX-License-Identifier: Apache-2.0
"""Print as JSON what a step of verl reads, logs and keeps under the rollout check: its own function, a real queue.

``test_rollout_step.py`` runs it. Trainer ranks are played by :class:`Ranks`, which put fixed log-probs into the queue.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from types import SimpleNamespace
from typing import Any

import ray
import torch
import transfer_queue
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from fp16_patch import envs
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl import masked_answers
from fp16_patch.frameworks.verl.rollout_health import check_step
from fp16_patch.precision import Precision

KEYS = [f"{uid}_{session}_0" for uid in ("a", "b") for session in range(2)]
LENGTHS = [3, 1, 4, 2]
PROMPT = 2
NAN = math.nan
CALLS: Counter[str] = Counter()


def jagged(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def put(partition: str, keys: list[str], **fields: list[torch.Tensor]) -> None:
    data = TensorDict({name: jagged(rows) for name, rows in fields.items()}, batch_size=len(keys))
    transfer_queue.kv_batch_put(keys=keys, partition_id=partition, fields=data)


def counted(name: str) -> None:
    """Count verl's and the check's calls of one function of the queue."""
    original = getattr(transfer_queue, name)

    def count(*args: Any, **kwargs: Any) -> Any:
        CALLS[name] += 1
        return original(*args, **kwargs)

    setattr(transfer_queue, name, count)


class Ranks:
    """The actor's worker group, as far as it computes log-probs of prompt and answer, shifted left by one."""

    def __init__(self, log_probs: list[list[float]]) -> None:
        self.log_probs = log_probs

    def compute_log_prob(self, batch: Any) -> Any:
        rows = [torch.tensor([0.0] * (PROMPT - 1) + row + [0.0]) for row in self.log_probs]
        put(batch.partition_id, batch.keys, log_probs=rows, entropy=[row.abs() for row in rows])
        CALLS.clear()
        return batch


def step(name: str, rollout: list[list[float]] | None, trainer: list[list[float]], **settings: Any) -> dict[str, Any]:
    """Return what ``_compute_old_log_prob`` does with these log-probs of both engines; a fifth row is padding."""
    keys = [*KEYS, "c_0_0"][: len(trainer)]
    ones = [torch.ones(length, dtype=torch.long) for length in LENGTHS]
    masks = [*ones, torch.zeros(1, dtype=torch.long)][: len(trainer)]
    fields = {"response_mask": masks, "loss_mask": masks, "responses": [mask * 7 for mask in masks]}
    if rollout is not None:
        fields["rollout_log_probs"] = [torch.tensor(row) for row in rollout]
    put(name, keys, **fields)
    bypass = settings.pop("bypass", False)
    os.environ[envs.PRECISION] = Precision(**settings).to_environment()
    config = {
        "algorithm": {"adv_estimator": "grpo", "rollout_correction": {"bypass_mode": bypass}},
        "actor_rollout_ref": {
            "actor": {"loss_agg_mode": "token-mean", "loss_scale_factor": None},
            "rollout": {"calculate_log_probs": rollout is not None, "temperature": 1.0, "top_p": 1.0, "top_k": -1},
        },
    }
    self = SimpleNamespace(
        config=OmegaConf.create(config),
        global_steps=3,
        actor_rollout_wg=Ranks(trainer),
        llm_server_manager=SimpleNamespace(get_replicas=list),
    )
    tags = [{"is_padding": key.startswith("c")} for key in keys]
    batch = transfer_queue.KVBatchMeta(keys=keys, tags=tags, partition_id=name)
    metrics: dict[str, Any] = {}
    CALLS.clear()
    try:
        check_step.make(PPOTrainer._compute_old_log_prob)(self, batch, metrics)
    except Fp16PatchError as error:
        return {"code": error.code, "error": str(error), "metrics": metrics}
    calls = dict(CALLS)
    left = ["response_mask", "old_log_probs", *(["rollout_log_probs"] if rollout is not None else [])]
    data = transfer_queue.kv_batch_get(keys=keys, partition_id=name, select_fields=left)
    return {
        "metrics": {name: float(value) for name, value in metrics.items()},
        "calls": calls,
        "masked": sorted(masked_answers._MASKED),
        **{name: [row.tolist() for row in data[name].unbind()] for name in left},
    }


def facts() -> dict[str, Any]:
    fine = [[-1.0] * length for length in LENGTHS]
    bad = [fine[0], fine[1], [-1.0, NAN, NAN, -1.0], fine[3]]
    mask = {"rollout_overflow": "mask", "rollout_overflow_max_share": 0.25}
    return {
        "finite": step("finite", fine, fine),
        "masked": step("masked", bad, fine, **mask),
        "bypass": step("bypass", bad, fine, bypass=True, **mask),
        "stopped": step("stopped", bad, fine),
        "trainer": step("trainer", fine, bad),
        "no_log_probs": step("no_log_probs", None, bad),
        "padding": step("padding", [*bad, [NAN]], [*fine, [NAN]], **mask),
        "short": step("short", [fine[0][:2], *fine[1:]], fine),
    }


if __name__ == "__main__":
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    storage = {"storage_backend": "SimpleStorage", "SimpleStorage": {"num_data_storage_units": 1}}
    transfer_queue.init(OmegaConf.create({"backend": storage}))
    counted("kv_batch_get")
    counted("kv_batch_put")
    print(json.dumps(facts()))
    ray.shutdown()
