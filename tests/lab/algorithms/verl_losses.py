# SPDX-License-Identifier: Apache-2.0
"""Run as a script: the loss and gradient of verl's own code for every case, as JSON into the file that is named.

The configuration is the recipe's, composed by Hydra and rewritten by the flag. What the trainer makes of a batch
(``_compute_old_log_prob``, ``_compute_advantage``) and what a worker makes of that (``ppo_loss``) is verl's; only the
store between the two is ours.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from cases import cases
from fixed_batch import answers
from tensordict import NonTensorStack, TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import trainer_base
from verl.utils import tensordict_utils
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.utils.losses import ppo_loss

from fp16_patch.lab.arms.command import Job
from fp16_patch.lab.loading.load import find, load
from fp16_patch.lab.trainers import TRAINERS


class Store:
    """The transfer queue's two calls, on a dictionary."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> TensorDict:
        chosen = {name: self.fields[name] for name in select_fields if name in self.fields}
        return TensorDict(chosen, batch_size=len(keys))

    def kv_batch_put(self, keys: list[str], partition_id: str, fields: TensorDict) -> KVBatchMeta:
        self.fields.update({name: fields[name] for name in fields.keys()})  # noqa: SIM118 - no mapping
        return KVBatchMeta(keys=keys, tags=[{}] * len(keys), partition_id=partition_id)


def loss_and_gradient(config: Any) -> tuple[float, list[float]]:
    """Of one update over the whole batch on one rank."""
    batch = answers()
    keys = [f"{answer.group}_{i}_0" for i, answer in enumerate(batch)]
    store = Store(
        {
            "uid": NonTensorStack(*(str(answer.group) for answer in batch)),
            "response_mask": ragged([torch.ones(len(answer.mu), dtype=torch.int64) for answer in batch]),
            "rm_scores": ragged([torch.tensor([0.0] * (len(a.mu) - 1) + [a.reward]) for a in batch]),
            "rollout_log_probs": ragged([answer.mu for answer in batch]),
        }
    )
    trainer = SimpleNamespace(config=config, actor_rollout_wg=Recomputing(store, [a.old for a in batch]))
    trainer_base.tq = store
    meta = KVBatchMeta(keys=keys, tags=[{}] * len(keys), partition_id="train")
    trainer_base.PPOTrainer._compute_old_log_prob(trainer, meta, {})
    trainer_base.PPOTrainer._compute_advantage(trainer, meta, {})

    data = TensorDict(dict(store.fields), batch_size=len(batch))
    data["prompts"] = ragged([torch.zeros(1, dtype=torch.int64) for _ in batch])
    data["responses"] = data["response_mask"]
    sizes = {"dp_size": 1, "batch_num_tokens": sum(len(a.mu) for a in batch), "global_batch_size": len(batch)}
    for name, size in sizes.items():
        tensordict_utils.assign_non_tensor_data(data, name, size)
    leaves = [answer.new.clone().requires_grad_() for answer in batch]
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    loss, _ = ppo_loss(actor, {"log_probs": whole_sequences(leaves)}, data)
    loss.backward()
    return loss.item(), [value for leaf in leaves for value in leaf.grad.tolist()]


class Recomputing:
    """The actor's worker group, asked for the log-probs before the step."""

    def __init__(self, store: Store, old: list[torch.Tensor]) -> None:
        self.store, self.old = store, old

    def compute_log_prob(self, batch: KVBatchMeta) -> KVBatchMeta:
        self.store.fields["log_probs"] = whole_sequences(self.old)
        self.store.fields["entropy"] = whole_sequences([torch.zeros(len(old)) for old in self.old])
        self.store.fields["responses"] = self.store.fields["response_mask"]
        return batch


def whole_sequences(responses: list[torch.Tensor]) -> torch.Tensor:
    """Behind a prompt of one token: a model's output at each position is for the next one."""
    return ragged([torch.cat([values, torch.zeros(1)]) for values in responses])


def ragged(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def without_the_flag(path: Path) -> Any:
    """What stock verl would start with."""
    from hydra import compose, initialize_config_module

    words = TRAINERS["verl"].build_command(Job(load(path, "toy"), "bf16", Path("/nowhere"))).arguments[3:]
    ours = ("hydra.", "+precision@", "fp16_patch.")
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=[word for word in words if not word.startswith(ours)])


if __name__ == "__main__":
    found = {case.name: loss_and_gradient(TRAINERS["verl"].compose(case.command("verl"))) for case in cases("verl")}
    found["PG-Seq-IS without the flag"] = loss_and_gradient(without_the_flag(find("sanity-pg-seq-is")))
    Path(sys.argv[1]).write_text(json.dumps(found))
