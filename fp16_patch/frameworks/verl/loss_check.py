# SPDX-License-Identifier: Apache-2.0
"""Check every loss of verl's engines before its backward pass, in every precision; skip the update if one is bad."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fp16_patch.attached_state import attached
from fp16_patch.frameworks.verl.state import Engine, role_of, scaler_of

if TYPE_CHECKING:
    from fp16_patch.loss_scaling.scaler_base import ScalerBase

INPUTS = (
    "advantages",
    "returns",
    "rollout_is_weights",
    "old_log_probs",
    "ref_log_prob",
    "values",
    "rollout_log_probs",
)
"""Names in verl's batch, in the order in which they are looked at."""
MASKS = ("response_mask", "loss_mask")
OUTPUTS = ("log_probs", "values", "entropy")

Loss = Callable[..., Any]


def checked(engine: Engine, loss_function: Loss) -> Loss:
    """Return ``loss_function`` with a check of its loss."""
    from fp16_patch.loss_scaling.loss_check import check_loss

    def check(**given: Any) -> Any:
        result = loss_function(**given)
        if "model_output" not in given:  # distillation calls its loss for the logits too
            return result
        data, outputs = given["data"], given["model_output"]
        named = {f"the model's {name}": output for name in OUTPUTS if (output := outputs.get(name)) is not None}
        loss, *rest = result
        loss, bad_loss = check_loss(
            loss,
            {name: data.get(name, None) for name in INPUTS},
            {name: data.get(name, None) for name in MASKS},
            named,
            role_of(engine),
            outputs_like_masks=lambda: {name: _of_answers(output, data) for name, output in named.items()},
        )
        if bad_loss is not None:
            losses_of(engine).report_bad_loss(bad_loss)
        return loss, *rest

    return check


def _of_answers(output: Any, data: Any) -> Any:
    """Return a model's output for the tokens of the answers, ``[answers, tokens]``. verl's losses read no other."""
    from verl.workers.utils.padding import no_padding_2_padding

    try:
        return no_padding_2_padding(output, data)
    except (AssertionError, KeyError):  # not one number for each token of prompts and answers
        return output


def losses_of(engine: Engine) -> ScalerBase:
    """Return what counts the losses of ``engine`` that are not finite: its scaler, if it has one."""
    from fp16_patch.loss_scaling.unscaled import UnscaledUpdates

    scaler: ScalerBase | None = scaler_of(engine)
    return attached(engine, UnscaledUpdates) if scaler is None else scaler


def step_without_scale(step: Callable[[Engine], Any], engine: Engine) -> Any:
    """Step in BF16 or FP32. Skip the update on every rank if a loss of one of them is not finite: then return None."""
    losses: Any = losses_of(engine)
    if skip := losses.any_bad_loss():
        engine.optimizer_zero_grad()
    grad_norm = None if skip else step(engine)
    losses.end_update(skipped=skip)
    return grad_norm
