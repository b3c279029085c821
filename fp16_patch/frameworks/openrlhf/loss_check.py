# SPDX-License-Identifier: Apache-2.0
"""Check every loss of OpenRLHF's actor and critic before its backward pass, in every precision."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fp16_patch.attached_state import attached
from fp16_patch.engines.deepspeed.step import losses_of
from fp16_patch.frameworks.openrlhf.releases import TRAINER_RANK
from fp16_patch.patching import wrap

INPUTS = ("advantages", "returns", "action_log_probs", "rollout_log_probs", "base_action_log_probs", "values")
"""Names in OpenRLHF's experience, in the order in which they are looked at."""
MASKS = ("action_mask",)

Strategy = Any  # openrlhf.utils.deepspeed.DeepspeedStrategy, never imported here


@dataclass
class Batch:
    """What a strategy trains on at present, and which model."""

    experience: Any = None
    engine: Any = None
    role: str = "model"
    outputs: dict[str, Any] = field(default_factory=dict)
    """What the model has returned for the next loss, as the log names it."""


def keep_outputs(strategy: Strategy, model: Any, name: str) -> None:
    """Keep what each forward pass of ``model`` in training returns, until its loss has been checked.

    ``name`` is that of the first thing it returns. The second may have an entropy.
    """
    model.register_forward_hook(partial(_keep_output, strategy, name))


def _keep_output(strategy: Strategy, name: str, _module: Any, _inputs: Any, output: Any) -> None:
    first, rest = output[:2] if isinstance(output, tuple) else (output, None)
    if getattr(first, "requires_grad", False):
        found = {name: first, "entropy": getattr(rest, "entropy", None)}
        attached(strategy, Batch).outputs = {f"the model's {key}": value for key, value in found.items()}


def _of_answers(outputs: dict[str, Any], mask: Any) -> dict[str, Any]:
    """Return outputs in the shape of the mask: OpenRLHF's entropy has the prompt's positions too."""
    if mask is None:
        return outputs
    return {name: value if value is None else value[..., -mask.shape[-1] :] for name, value in outputs.items()}


@wrap(
    "openrlhf.utils.deepspeed.deepspeed:DeepspeedStrategy.backward",
    name="openrlhf-check-loss",
    **TRAINER_RANK,
    reason="a loss that is not finite before it is scaled lowers the loss scale as an overflow does, though no scale "
    "would help, and in BF16 ZeRO-3 steps on it. It is made NaN, so that all ranks skip the update, and counted",
    upstream="OpenRLHF utils/deepspeed/deepspeed.py:177",
    remove_when="OpenRLHF skips updates whose loss is not finite, on all ranks, and reports them",
)
def check_before_backward(original: Any, self: Strategy, loss: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    """Check the loss, and report one that is not finite to what counts the model's updates."""
    from fp16_patch.loss_scaling.loss_check import check_loss

    batch = attached(self, Batch)
    inputs, masks = ({name: getattr(batch.experience, name, None) for name in names} for names in (INPUTS, MASKS))
    outputs, batch.outputs = _of_answers(batch.outputs, masks["action_mask"]), {}
    loss, bad_loss = check_loss(loss, inputs, masks, outputs, role=batch.role)
    if bad_loss is not None and batch.engine is not None:
        losses_of(batch.engine).report_bad_loss(bad_loss)
    return original(self, loss, model, *args, **kwargs)
