# SPDX-License-Identifier: Apache-2.0
"""Name the sampling parameters that make mu another distribution than the one the trainer computes.

The trainer computes ``softmax(logits / temperature)``. A parameter that cuts, shifts or forbids tokens makes vLLM
sample from something else. Its log-probs are those of the changed distribution, or with ``logprobs_mode=raw_logprobs``
those of the logits before any parameter is applied (``vllm/v1/sample/sampler.py``). Does not import torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from fp16_patch.errors import Fp16PatchError

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (1.0,),
    "top_k": (0, -1),
    "min_p": (0.0,),
    "presence_penalty": (0.0,),
    "frequency_penalty": (0.0,),
    "repetition_penalty": (1.0,),
    "min_tokens": (0,),
    "logit_bias": (None, {}),
    "allowed_token_ids": (None, []),
    "bad_words": (None, []),
    "structured_outputs": (None,),
    "thinking_token_budget": (None,),
    "logits_processors": (None, []),
}
"""vLLM's sampling parameters that change the distribution (``vllm/sampling_params.py``), and the values at which
they do not."""

BEFORE_RAW = ("structured_outputs",)
"""Parameters that vLLM applies to the logits before it takes raw log-probs (``vllm/v1/worker/gpu_model_runner.py``)."""

Changed = Counter[tuple[str, str]]
"""(parameter, value as text) -> requests. ``temperature`` is counted at every value."""


def distribution_parameters(parameters: Any) -> list[tuple[str, str]]:
    """Return (name, value as text) of the parameters that decide the distribution of a request, temperature first.

    Args:
        parameters: vLLM's SamplingParams. A name that this release of vLLM does not have is left out.
    """
    found = [("temperature", f"{parameters.temperature:g}")]
    for name, neutral in NEUTRAL.items():
        value = getattr(parameters, name, neutral[0])
        if value not in neutral:
            found.append((name, f"{value}"))
    return found


def changed_requests(counts: Mapping[tuple[str, str], int], accepted: Collection[tuple[str, str]]) -> Changed:
    """Return the counts of the parameters that have another value than an accepted one.

    Args:
        counts: Requests for each (parameter, value) of :func:`distribution_parameters`.
        accepted: The trainer's temperature, and what else the user has accepted, as :func:`accept` gives them.
    """
    return Counter({request: count for request, count in counts.items() if request not in accepted})


def accept(**parameters: float) -> set[tuple[str, str]]:
    """Return parameters as :func:`distribution_parameters` would name them."""
    return {(name, f"{value:g}" if name == "temperature" else f"{value}") for name, value in parameters.items()}


def metrics(changed: Changed) -> dict[str, float]:
    """Return ``rollout/changed_sampling``, requests times changed parameters, and the count of each parameter."""
    by_name: Counter[str] = Counter()
    for (name, _), count in changed.items():
        by_name[name] += count
    total = {"rollout/changed_sampling": float(sum(by_name.values()))}
    return total | {f"rollout/changed_sampling/{name}": float(count) for name, count in sorted(by_name.items())}


def refuse_changed(changed: Changed, step: int, temperature: float, whole: str | None = None) -> Fp16PatchError:
    """Return the error for requests of a training step that sampled from another distribution.

    Args:
        changed: The parameters.
        step: The training step, for the message.
        temperature: The trainer's.
        whole: What makes vLLM's log-probs those of the trainer's distribution whatever is sampled from; None: they are
            those of the distribution that was sampled from.
    """
    listed = ", ".join(f"{name}={value} ({count} requests)" for (name, value), count in sorted(changed.items()))
    why = "its log-probs are those of that distribution, not of the one that the trainer computes, so every importance "
    why += "weight and mismatch metric is wrong"
    if whole is not None:
        why = "the samples are not of the distribution that the trainer computes, which no importance weight corrects. "
        why += f"The log-probs are of that distribution ({whole})"
        masked = [name for name in BEFORE_RAW if any(name == changed_name for changed_name, _ in changed)]
        why += f", but with {', '.join(masked)} they are those of the tokens allowed" if masked else ""
    return Fp16PatchError(
        f"step {step}: vLLM sampled with {listed}; {why}",
        code="sampling-changed",
        allowed=f"temperature={temperature:g}, and no parameter that cuts or shifts the distribution",
        next_step="remove the parameter from the agent loop or rollout function that passes it; to train all the "
        "same, set fp16_patch.allow_truncated_sampling=true",
    )
