# SPDX-License-Identifier: Apache-2.0
"""Watch the rollout of each training step: log-probs that are not finite, and requests of another distribution.

The patches run in the PPO trainer's Ray actor (see ``controller``), before a model, a correction or the loss reads a
log-prob. An error raised there stops the run. With the async trainer the sampler works ahead: the requests and logits
counted in a step may then be those of the next batch. Log-probs are always counted in the step that trains on them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fp16_patch.attached_state import attached
from fp16_patch.engines.ray.actor_calls import answers
from fp16_patch.engines.vllm.logits import NON_FINITE_LOGITS, sum_rows
from fp16_patch.engines.vllm.sampling import set_counting, take_requests
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.openrlhf.config import asks_for_log_probs
from fp16_patch.frameworks.openrlhf.masked_answers import clear_answers, out_of_their_groups
from fp16_patch.frameworks.openrlhf.releases import ASYNC_CONTROLLER, ASYNC_TRAINER, CONTROLLER, RELEASE, TRAINER
from fp16_patch.frameworks.openrlhf.rollout import ask_workers
from fp16_patch.frameworks.openrlhf.rollout_trace import add_trace, trace_step
from fp16_patch.patching import ProcessKind, wrap
from fp16_patch.precision import Precision
from fp16_patch.rollout_health import sampling

if TYPE_CHECKING:
    import torch

Controller = Any  # openrlhf.trainer.ppo_trainer.PPOTrainer, or ppo_trainer_async.TrainingActor, never imported here
Experience = Any  # openrlhf.trainer.ppo_utils.experience.Experience, never imported here
Metrics = dict[str, float]

_OURS: dict[str, Any] = {"upstream": "none: our own proof", "remove_when": "OpenRLHF checks what its rollout returns"}
_CHECK = "a policy that overflows in vLLM returns NaN log-probs, and OpenRLHF trains on them without a word"


@dataclass
class StepHealth:
    """State on the experience maker, of the current step."""

    metrics: Metrics = field(default_factory=dict)
    masked: torch.Tensor | None = None
    """Boolean ``[answers]``, in the order of the rollout; None if every answer is trained on."""
    pending: list[Callable[[Metrics], None]] = field(default_factory=list)
    """Checks of what the vLLM actors were asked for: run when the trainer has its log-probs, so that none waits."""
    seconds: float = 0.0
    """Time that the checks have taken."""


@wrap(f"{ASYNC_TRAINER}.train_step", name="openrlhf-async-rollout-health", reason=_CHECK, **_OURS, **ASYNC_CONTROLLER)
@wrap(f"{TRAINER}.train_step", name="openrlhf-rollout-health", reason=_CHECK, **_OURS, **CONTROLLER)
def check_step(original: Any, self: Controller, rollout_samples: Any, global_step: int) -> Any:
    """Check the rollout of this step, and add the counts to OpenRLHF's own metrics."""
    health = attached(self.experience_maker, StepHealth)
    start = time.perf_counter()
    health.metrics, health.masked = {}, None
    calls = _ask_servers(self.vllm_engines, take_server_requests)
    health.pending = [partial(check_sampling, self, calls, global_step + 1)]
    if asks_for_log_probs(self.args):
        health.masked = check_log_probs(self, rollout_samples, health.metrics, global_step + 1)
    else:
        calls = _ask_servers(self.vllm_engines, ask_workers, NON_FINITE_LOGITS)
        health.pending.append(partial(check_logits, self, rollout_samples, calls, global_step + 1))
    health.seconds = time.perf_counter() - start
    status, step = original(self, rollout_samples, global_step)
    assert not health.pending, "OpenRLHF has made no advantages in this step"
    return status | health.metrics | {"timing/rollout_health": health.seconds}, step


def check_log_probs(
    controller: Controller, samples: list[Experience], metrics: Metrics, step: int
) -> torch.Tensor | None:
    """Count the rollout's log-probs that are not finite, and mask their answers where the flag says so.

    Args:
        controller: Reaches vLLM, for a trace.
        samples: One answer each, ``[1, length]``. A masked one keeps no token that counts and no log-prob.
        metrics: Gets the counts.
        step: The training step, for errors.

    Returns:
        The masked answers, boolean ``[answers]``, or None if there are none.

    Raises:
        Fp16PatchError: The run must stop.
    """
    import torch

    from fp16_patch.rollout_health.non_finite import find_in_answers
    from fp16_patch.rollout_health.overflow_policy import answers_to_mask, check_lengths

    lengths = [sample.action_mask.shape[1] for sample in samples]
    given = [0 if sample.rollout_log_probs is None else sample.rollout_log_probs.shape[1] for sample in samples]
    if given != lengths:
        prompts = [int(sample.action_mask[0].int().argmax()) for sample in samples]
        check_lengths(_less(given, prompts), _less(lengths, prompts), step)
    log_probs, mask = (
        torch.cat([getattr(sample, name) for sample in samples], 1)[0] for name in ("rollout_log_probs", "action_mask")
    )
    found = find_in_answers(log_probs, mask, torch.tensor([0, *lengths]).cumsum(0))
    metrics |= found.metrics("rollout")
    precision = Precision.current()
    tokens: list[torch.Tensor] = []
    if found.first is not None:  # its position among the sampled tokens: a row has those of prompt and environment too
        sampled = [sample.action_mask[0].bool() for sample in samples]
        answer, position = found.first
        found = replace(found, first=(answer, int(sampled[answer][:position].sum())))
        tokens = [sample.sequences[0, 1:][mask] for sample, mask in zip(samples, sampled, strict=True)]
    try:
        masked = answers_to_mask(found, tokens, step, precision)
    except Fp16PatchError as error:
        raise add_trace(error, controller, samples, step, found.first) from None
    if precision.trace_rollout == step:
        trace_step(controller, samples, step, found.first)
    if precision.rollout_overflow == "mask":
        metrics["rollout/masked_answers"] = float(masked.sum())
    for answer in masked.nonzero().flatten().tolist():
        sample = samples[answer]
        sample.action_mask = torch.zeros_like(sample.action_mask)
        sample.rollout_log_probs = torch.zeros_like(sample.rollout_log_probs)
    return masked if masked.any() else None


@wrap(
    "openrlhf.trainer.ppo_utils.experience_maker:RemoteExperienceMaker.compute_advantages_and_returns",
    name="openrlhf-masked-answers",
    release=RELEASE,
    processes={ProcessKind.CONTROLLER, ProcessKind.ASYNC_CONTROLLER},
    reason="counts the trainer's log-probs that are not finite; an answer that fp16_patch.rollout_overflow=mask takes "
    "out of the loss must not move its group's mean and deviation either",
    **_OURS,
)
def leave_groups(original: Any, self: Any, experiences: list[Experience]) -> Any:
    """Finish the checks, count the trainer's log-probs, and take masked answers out of rewards and advantages."""
    from fp16_patch.rollout_health.non_finite import find_non_finite

    health = attached(self, StepHealth)
    start = time.perf_counter()
    while health.pending:
        health.pending.pop(0)(health.metrics)
    found = [find_non_finite(e.action_log_probs, e.action_mask).metrics("trainer") for e in experiences]
    health.metrics |= {name: sum(counts[name] for counts in found) for name in found[0]}
    health.seconds += time.perf_counter() - start
    if health.masked is None:
        return original(self, experiences)
    clear_answers(experiences, health.masked)
    args = self.strategy.args
    estimator, group_size = args.algo.advantage.estimator, args.rollout.n_samples_per_prompt
    with out_of_their_groups(experiences, health.masked, estimator, group_size):
        return original(self, experiences)


def check_logits(
    controller: Controller, samples: list[Experience], calls: dict[str, Any], step: int, metrics: Metrics
) -> None:
    """Count the rows of vLLM's logits that were not finite, where nobody asks vLLM for log-probs.

    Raises:
        Fp16PatchError: There is one: no answer can be named, so none can be masked. Or a worker does not count.
    """
    from fp16_patch.rollout_health.overflow_policy import refuse_logits

    rows = sum_rows(answers(calls))
    metrics["rollout/non_finite_logits"] = float(rows)
    if rows:
        raise add_trace(refuse_logits(rows, step, Precision.current()), controller, samples, step, None)
    if Precision.current().trace_rollout == step:
        trace_step(controller, samples, step, None)


def check_sampling(controller: Controller, calls: dict[str, Any], step: int, metrics: Metrics) -> None:
    """Count the requests since the last step that sampled from another distribution than the trainer computes.

    Raises:
        Fp16PatchError: There is one, OpenRLHF reads its log-probs, and the flag does not accept it.
    """
    requests: Counter[tuple[str, str]] = Counter()
    for counts in answers(calls).values():
        requests.update(counts)
    temperature = controller.args.rollout.temperature
    changed = sampling.changed_requests(requests, sampling.accept(temperature=temperature))
    metrics |= sampling.metrics(changed)
    if changed and asks_for_log_probs(controller.args) and not Precision.current().allow_truncated_sampling:
        raise sampling.refuse_changed(changed, step, temperature)


@wrap(
    "openrlhf.trainer.ppo_utils.samples_generator:SamplesGenerator.generate_eval_samples",
    name="openrlhf-evaluation-requests-apart",
    release=RELEASE,
    processes={ProcessKind.CONTROLLER, ProcessKind.SAMPLER},
    reason="evaluation has sampling settings of its own; its requests are not those of a training step",
    **_OURS,
)
def leave_out_evaluation(original: Any, self: Any, **generate_kwargs: Any) -> Any:
    """Count no request of the evaluation. No other request is made meanwhile, with the async trainer neither."""
    answers(_ask_servers(self.vllm_engines, count_server_requests, False))
    try:
        return original(self, **generate_kwargs)
    finally:
        answers(_ask_servers(self.vllm_engines, count_server_requests, True))


def take_server_requests(_actor: Any) -> dict[tuple[str, str], int]:
    """Return the requests that reached this vLLM actor since the last call. Runs inside it."""
    return take_requests()


def count_server_requests(_actor: Any, on: bool) -> None:
    """Count the requests that reach this vLLM actor from now on, or leave them out. Runs inside it."""
    set_counting(on)


def _less(lengths: Iterable[int], prompts: list[int]) -> list[int]:
    return [length - prompt for length, prompt in zip(lengths, prompts, strict=True)]


def _ask_servers(engines: list[Any], function: Any, *args: Any) -> dict[str, Any]:
    """Call ``function`` in every vLLM actor. Does not wait: return the calls by name."""
    return {f"vLLM server {i}": engine.__ray_call__.remote(function, *args) for i, engine in enumerate(engines)}
