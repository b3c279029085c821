# SPDX-License-Identifier: Apache-2.0
"""Decide what happens to a step in which the rollout returned log-probs that are not finite: stop, or mask.

An activation beyond 65504 becomes infinite in FP16. The logits are then NaN, vLLM samples token 0, and the log-prob
of every token of that answer from there on is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fp16_patch.errors import Fp16PatchError
from fp16_patch.precision import Precision
from fp16_patch.rollout_health.non_finite import NonFinite

SHOWN_TOKENS = 8
"""Token ids shown of the first affected answer, from its first affected position on."""

IN_BF16 = (
    "sample this model in BF16 (+precision@_global_=bf16, or --ds.param_dtype bf16). fp16_patch.fp32_modules does not "
    "help here: it changes the trainer only, and vLLM computes as before"
)


def answers_to_mask(
    found: NonFinite, tokens: torch.Tensor | Sequence[torch.Tensor], step: int, precision: Precision
) -> torch.Tensor:
    """Return the answers that must leave the loss, boolean ``[answers]``.

    Args:
        found: The non-finite log-probs of the rollout.
        tokens: Sampled token ids of each answer; padded ``[answers, length]``, or one tensor each.
        step: The training step, for the message.
        precision: Says whether to stop or to mask, and the share of answers above which a run stops in any case.

    Raises:
        Fp16PatchError: The run must stop.
    """
    if found.first is None:
        return found.affected
    answers, share = len(found.affected), found.share
    limit = precision.rollout_overflow_max_share
    if precision.rollout_overflow == "mask" and share <= limit:
        return found.affected
    answer, position = found.first
    sampled = tokens[answer][position : position + SHOWN_TOKENS].tolist()
    stops = precision.rollout_overflow == "stop"
    allowed = f"at most {100 * limit:g} % of a step's answers (fp16_patch.rollout_overflow_max_share={limit:g})"
    raise Fp16PatchError(
        f"step {step}: vLLM returned log-probs that are inf or NaN for {found.tokens} tokens in {found.answers} of "
        f"{answers} answers ({share:.1%}). The first is at position {position} of answer {answer}; the token ids "
        f"sampled from there on are {sampled}",
        code="rollout-overflow",
        allowed="finite log-probs from the rollout engine" if stops else allowed,
        next_step=_next_step(precision, "to drop such answers, set fp16_patch.rollout_overflow=mask" if stops else ""),
    )


def check_lengths(log_probs: Sequence[int], tokens: Sequence[int], step: int) -> None:
    """Check that each answer has one log-prob for each sampled token.

    Args:
        log_probs: Number of log-probs of each answer.
        tokens: Number of tokens of each answer.
        step: The training step, for the message.

    Raises:
        Fp16PatchError: An answer has fewer or more.
    """
    for answer, (found, wanted) in enumerate(zip(log_probs, tokens, strict=True)):
        if found != wanted:
            raise Fp16PatchError(
                f"step {step}: answer {answer} has {wanted} tokens and {found} log-probs from the rollout",
                code="log-probs-incomplete",
                allowed="one log-prob for each sampled token",
                next_step="look at the agent loop or rollout function that returns the log-probs",
            )


def refuse_logits(rows: int, step: int, precision: Precision) -> Fp16PatchError:
    """Return the error for logits that are not finite, in a run that does not ask vLLM for log-probs."""
    mask = "to drop such answers, ask vLLM for log-probs and set fp16_patch.rollout_overflow=mask"
    return Fp16PatchError(
        f"step {step}: {rows} rows of vLLM's logits were NaN or +inf; the tokens sampled from them are arbitrary",
        code="rollout-overflow",
        allowed="finite logits from the rollout engine",
        next_step=_next_step(precision, mask),
    )


def _next_step(precision: Precision, mask: str) -> str:
    """Return what helps: another dtype if the rollout is in FP16; otherwise the model or its weights are at fault."""
    first = IN_BF16 if precision.rollout_dtype == "fp16" else "look at the weights: they or the model are not finite"
    return "; ".join(part for part in (first, mask) if part)
