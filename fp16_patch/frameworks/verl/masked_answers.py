# SPDX-License-Identifier: Apache-2.0
"""Take masked answers out of verl's losses and out of their group's mean and deviation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fp16_patch.frameworks.verl.releases import TASK_RUNNER
from fp16_patch.patching import wrap

if TYPE_CHECKING:
    import torch

Batch = Any  # transfer_queue's KVBatchMeta: keys of a step's answers, not their tensors

WITHOUT_GROUPS = ("gae", "reinforce_plus_plus", "remax")
"""verl's advantage estimators that do not compare the answers of a prompt with each other."""

_MASKED: set[str] = set()  # keys of this step's masked answers; verl's advantage function gets no trainer


def clear_masked() -> None:
    """Forget the masked answers of the last step."""
    _MASKED.clear()


def masked_keys() -> frozenset[str]:
    """Return the keys of the answers that were masked in this step."""
    return frozenset(_MASKED)


def mask_answers(batch: Batch, affected: torch.Tensor) -> int:
    """Take answers out of every loss and mean: no token of theirs counts, and none of their numbers is NaN.

    Args:
        batch: The keys of a step's answers. Other outputs of an affected answer's session are masked too.
        affected: Boolean ``[answers]``.

    Returns:
        The number of masked answers.
    """
    import torch
    import transfer_queue

    sessions = {key.rpartition("_")[0] for key, out in zip(batch.keys, affected.tolist(), strict=True) if out}
    _MASKED.update(key for key in batch.keys if key.rpartition("_")[0] in sessions)
    if keys := [key for key in batch.keys if key in _MASKED]:
        fields = ["response_mask", "loss_mask", "rollout_log_probs"]
        data = transfer_queue.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=fields)
        for name in fields:
            zeros = [torch.zeros_like(row) for row in data[name].unbind()]
            data[name] = torch.nested.as_nested_tensor(zeros, layout=torch.jagged)
        transfer_queue.kv_batch_put(keys=keys, partition_id=batch.partition_id, fields=data)
    return len(keys)


@wrap(
    "verl.trainer.ppo.v1.utils:compute_advantage_for_multi_trajectories",
    name="masked-answers-leave-their-group",
    when="verl.trainer.ppo.v1.trainer_base",
    also_bound=("verl.trainer.ppo.v1.trainer_base:compute_advantage_for_multi_trajectories",),
    reason="an answer that fp16_patch.rollout_overflow=mask takes out of the loss must not move its group's mean and "
    "deviation either",
    upstream="none: our own proof",
    remove_when="verl checks the log-probs of its rollout engine",
    **TASK_RUNNER,
)
def leave_groups(original: Any, data: Any, batch_keys: list[str], *args: Any, **kwargs: Any) -> Any:
    """Give each masked answer a group of its own, and an answer that is left alone in its group no advantage."""
    if not _MASKED:
        return original(data, batch_keys, *args, **kwargs)
    groups = data.non_tensor_batch["uid"]
    alone = lone_answers(groups.tolist(), batch_keys, _MASKED)
    for row, key in enumerate(batch_keys):
        if key in _MASKED:
            groups[row] = f"masked {key}"
    data = original(data, batch_keys, *args, **kwargs)
    if kwargs["adv_estimator"] not in WITHOUT_GROUPS:
        for name in ("advantages", "returns"):
            data.batch[name][alone] = 0
    return data


def lone_answers(groups: list[str], keys: list[str], masked: Iterable[str]) -> list[int]:
    """Return the rows of answers that have lost every other answer of their group. A key is ``{uid}_{session}_{n}``."""
    masked = set(masked)
    sessions: dict[str, set[str]] = {}
    left: dict[str, set[str]] = {}
    for group, key in zip(groups, keys, strict=True):
        session = key.rpartition("_")[0]
        sessions.setdefault(group, set()).add(session)
        if key not in masked:
            left.setdefault(group, set()).add(session)
    return [
        row
        for row, (group, key) in enumerate(zip(groups, keys, strict=True))
        if key not in masked and len(left[group]) == 1 < len(sessions[group])
    ]
