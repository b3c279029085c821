# SPDX-License-Identifier: Apache-2.0
"""Measure the mismatch between trainer and rollout, in addition to verl's own metrics and in bypass mode.

In bypass mode verl computes the trainer's log-probs only in its updates. The first update of a step computes them
with the policy that sampled. So they are compared with the rollout's there, on that update's part of the batch and at
no extra cost. Later updates of the step have changed the policy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fp16_patch.attached_state import attached
from fp16_patch.frameworks.verl.releases import TASK_RUNNER
from fp16_patch.frameworks.verl.state import Engine, EngineState
from fp16_patch.mismatch import METRIC_PREFIX
from fp16_patch.patching import wrap
from fp16_patch.precision import Precision, reports_folder

if TYPE_CHECKING:
    import torch

COUNTS = ("tokens", "non_finite_tokens")

Loss = Callable[..., Any]
LogProbs = tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]
"""mu, pi and the mask of a micro-batch: ``[answers, tokens]``."""


@wrap(
    "verl.utils.debug.metrics:calculate_debug_metrics",
    name="mismatch-metrics",
    when="verl.trainer.ppo.ray_trainer",  # the V1 trainer imports it too
    also_bound=("verl.trainer.ppo.v1.trainer_base:calculate_debug_metrics",),
    **TASK_RUNNER,
    reason="adds max and min of pi - mu and the KL in float64 to verl's own mismatch metrics; keeps the log-probs "
    "if fp16_patch.keep_log_probs is set",
    upstream="none: our own proof",
    remove_when="never",
)
def add_mismatch_metrics(original: Any, data: Any) -> dict[str, Any]:
    """Add signed and KL mismatch of this batch to verl's ``training/rollout_probs_diff_*``."""
    from fp16_patch.mismatch import log_prob_store
    from fp16_patch.mismatch.metrics import mismatch_metrics

    metrics: dict[str, Any] = original(data)
    log_probs = [data.batch[name] for name in ("rollout_log_probs", "old_log_probs", "response_mask")]
    found = mismatch_metrics(*log_probs)
    if Precision.current().keep_log_probs:
        log_prob_store.save(reports_folder() / log_prob_store.FOLDER, *log_probs)
    return metrics | {f"{METRIC_PREFIX}{name}": value for name, value in found.items()}


def observe_loss(engine: Engine, data: Any, loss_function: Loss) -> tuple[Loss, list[LogProbs]]:
    """Return the loss for this mini-batch, and a list to which it adds the log-probs to compare."""
    from verl.utils import tensordict_utils as tu

    seen: list[LogProbs] = []
    state = attached(engine, EngineState)
    first = state.begins_step
    state.begins_step = tu.get(data, key="update_lr_scheduler", default=False)
    if not first or not _in_bypass_mode(loss_function):
        return loss_function, seen

    def observed(**given: Any) -> Any:
        # Distillation calls its loss for the logits too, and may leave the log-probs out.
        if "log_probs" in given.get("model_output", {}):
            seen.append(_log_probs(given["model_output"], given["data"]))
        return loss_function(**given)

    return observed, seen


def metrics(engine: Engine, seen: list[LogProbs]) -> dict[str, list[float]]:
    """Return a rank's mismatch metrics. verl reduces them over the ranks: ``_max``, ``_min``, others by mean."""
    if not seen:
        return {}
    import torch

    from fp16_patch.mismatch.metrics import mismatch_metrics

    mu, pi, mask = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in zip(*seen, strict=True))
    found = mismatch_metrics(mu, pi, mask)
    if not mask.any():  # a rank that got padding only: nothing to compare, and it counts in the mean over ranks
        found = {count: found[count] for count in COUNTS}
    for count in COUNTS:
        found[count] *= engine.get_data_parallel_size()
    return {f"{METRIC_PREFIX}{name}": [value] for name, value in found.items()}


def strip_actor_prefix(metrics: dict[str, Any]) -> None:
    """Rename a step's mismatch metrics, which verl logs under ``actor/``, to their names in every other mode."""
    for name in [name for name in metrics if name.startswith(f"actor/{METRIC_PREFIX}")]:
        metrics[name.removeprefix("actor/")] = metrics.pop(name)


def _in_bypass_mode(loss_function: Loss) -> bool:
    """Return what the actor's configuration says, which verl binds to the loss (``workers/engine_workers.py``)."""
    from fp16_patch.frameworks.verl.config.rollout_correction import BYPASS  # loads OmegaConf

    config = getattr(loss_function, "keywords", {}).get("config")
    policy_loss = getattr(config, "policy_loss", None)
    return policy_loss is not None and policy_loss.get("loss_mode") == BYPASS


def _log_probs(model_output: Any, data: Any) -> LogProbs:
    """Return mu, pi and mask. In this mode the old log-probs are the rollout's (``trainer/ppo/v1/trainer_base.py``)."""
    from verl.workers.utils.padding import no_padding_2_padding

    padded = data.select("old_log_probs", "response_mask").to_padded_tensor()
    pi = no_padding_2_padding(model_output["log_probs"].detach(), data)
    return padded["old_log_probs"], pi, padded["response_mask"].bool()
