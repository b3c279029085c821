# SPDX-License-Identifier: Apache-2.0
"""The mismatch in bypass mode, where verl computes no log-probs of the trainer but those it updates with.

The first update of a step still computes them with the policy that sampled: there they are compared to the rollout's,
on that update's share of the batch and at no further cost. Those of later updates have moved away by training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fp16_patch.mismatch import METRIC_PREFIX

if TYPE_CHECKING:
    import torch

_BEGINS_STEP = "_fp16_patch_begins_step"  # on an engine: its next update is the first of a step

Engine = Any  # a verl.workers.engine.base.BaseEngine, never imported here
Loss = Callable[..., Any]
LogProbs = tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]
"""mu, pi and the mask of a micro-batch: ``[answers, tokens]``."""


def watch(engine: Engine, data: Any, loss_function: Loss) -> tuple[Loss, list[LogProbs]]:
    """Return the loss to train this mini-batch with, and where it leaves log-probs that are to be compared."""
    from verl.utils import tensordict_utils as tu

    seen: list[LogProbs] = []
    first = getattr(engine, _BEGINS_STEP, True)
    setattr(engine, _BEGINS_STEP, tu.get(data, key="update_lr_scheduler", default=False))
    if not first or not _in_bypass_mode(loss_function):
        return loss_function, seen

    def watched(**given: Any) -> Any:
        # Distillation calls its loss for the logits too, and may leave the log-probs out.
        if "log_probs" in given.get("model_output", {}):
            seen.append(_log_probs(given["model_output"], given["data"]))
        return loss_function(**given)

    return watched, seen


def metrics(engine: Engine, seen: list[LogProbs]) -> dict[str, list[float]]:
    """As verl wants a rank's metrics; it takes the mean over the ranks, and of ``_max`` and ``_min`` the extreme."""
    if not seen:
        return {}
    import torch

    from fp16_patch.mismatch.metrics import mismatch_metrics

    mu, pi = (torch.cat([batch[which][batch[2]] for batch in seen]) for which in (0, 1))
    if not len(mu):  # a rank that got padding only
        return {}
    found = mismatch_metrics(mu, pi, torch.ones_like(mu, dtype=torch.bool))
    found["tokens"] *= engine.get_data_parallel_size()
    return {f"{METRIC_PREFIX}{name}": [value] for name, value in found.items()}


def under_their_own_name(step: dict[str, Any]) -> None:
    """In a step's metrics: what verl took for the actor's stands where every other mode's is."""
    for name in [name for name in step if name.startswith(f"actor/{METRIC_PREFIX}")]:
        step[name.removeprefix("actor/")] = step.pop(name)


def _in_bypass_mode(loss_function: Loss) -> bool:
    """verl binds an actor's configuration to its loss (``workers/engine_workers.py``)."""
    from fp16_patch.frameworks.verl.config.rollout_correction import BYPASS  # loads OmegaConf

    config = getattr(loss_function, "keywords", {}).get("config")
    policy_loss = getattr(config, "policy_loss", None)
    return policy_loss is not None and policy_loss.get("loss_mode") == BYPASS


def _log_probs(model_output: Any, data: Any) -> LogProbs:
    """In this mode the old log-probs are the rollout's (``trainer/ppo/v1/trainer_base.py``)."""
    from verl.workers.utils.padding import no_padding_2_padding

    padded = data.select("old_log_probs", "response_mask").to_padded_tensor()
    pi = no_padding_2_padding(model_output["log_probs"].detach(), data)
    return padded["old_log_probs"], pi, padded["response_mask"].bool()
