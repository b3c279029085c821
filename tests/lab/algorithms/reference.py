# SPDX-License-Identifier: Apache-2.0
"""The paper's losses in float64, answer by answer, written from the formulas and sharing nothing with any framework.

arXiv 2510.26788, section 2, in the form of the authors' code (``oat/main.py`` of sail-sg/Precision-RL,
``compute_policy_loss`` of sail-sg/Precision-RL-verl): mu is the rollout's policy, pi_old the trainer's before the step,
pi the trainer's now. Log-probs come in as FP32, everything from there on is float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev

import torch
from fixed_batch import Answer

Hyperparameters = Mapping[str, float]
Tokens = torch.Tensor  # one number for each token of an answer


def loss_and_gradient(
    algorithm: str, answers: Sequence[Answer], hyperparameters: Hyperparameters, aggregation: str | None = None
) -> tuple[float, list[float]]:
    """The loss, and its gradient with respect to every log pi, the answers' tokens one after the other.

    ``aggregation`` replaces the algorithm's own, where a framework has not got it.
    """
    tokens, standardised, own = ALGORITHMS[algorithm]
    leaves = [answer.new.double().requires_grad_() for answer in answers]
    advantages = _advantages(answers, standardised)
    losses = [
        tokens(answer.mu.double(), answer.old.double(), new, advantage, hyperparameters)
        for answer, new, advantage in zip(answers, leaves, advantages, strict=True)
    ]
    loss = AGGREGATIONS[aggregation or own](losses, hyperparameters)
    loss.backward()
    gradient = [value for new in leaves for value in (new.grad if new.grad is not None else 0 * new).tolist()]
    return loss.item(), gradient


def _advantages(answers: Sequence[Answer], standardised: bool) -> list[float]:
    """R minus the group's mean (section 2; Dr.GRPO); DAPO divides by the group's standard deviation."""
    found = []
    for answer in answers:
        rewards = [other.reward for other in answers if other.group == answer.group]
        centred = answer.reward - fmean(rewards)
        found.append(centred / stdev(rewards) if standardised and centred else centred)
    return found


def _ppo_clip(old: Tokens, new: Tokens, advantage: float, h: Hyperparameters) -> Tokens:
    """PPO's clipped surrogate: max(-A r, -A clip(r)), r = pi / pi_old."""
    ratio = (new - old).exp()
    clipped = ratio.clamp(1 - h["clip_low"], 1 + h["clip_high"])
    return torch.maximum(-advantage * ratio, -advantage * clipped)


def grpo(mu: Tokens, old: Tokens, new: Tokens, advantage: float, h: Hyperparameters) -> Tokens:
    """No correction: mu does not appear."""
    return _ppo_clip(old, new, advantage, h)


def grpo_token_tis(mu: Tokens, old: Tokens, new: Tokens, advantage: float, h: Hyperparameters) -> Tokens:
    """Truncated importance sampling, token by token: min(pi_old / mu, C)."""
    return (old - mu).exp().clamp(max=h["correction_cap"]) * _ppo_clip(old, new, advantage, h)


def grpo_seq_mis(mu: Tokens, old: Tokens, new: Tokens, advantage: float, h: Hyperparameters) -> Tokens:
    """Masked importance sampling of the whole answer: rho 1[rho <= C], rho = pi_old(y) / mu(y)."""
    rho = (old - mu).sum().exp()
    return (rho if rho <= h["correction_cap"] else 0.0) * _ppo_clip(old, new, advantage, h)


def gspo(mu: Tokens, old: Tokens, new: Tokens, advantage: float, h: Hyperparameters) -> Tokens:
    """The ratio of the whole answer to the power 1 / length, with each token's own gradient; mu does not appear."""
    of_the_answer = (new - old).mean().exp().detach()
    ratio = of_the_answer * (new - new.detach()).exp()
    clipped = ratio.clamp(1 - h["clip_low"], 1 + h["clip_high"])
    return torch.maximum(-advantage * ratio, -advantage * clipped)


def _policy_gradient(mu: Tokens, new: Tokens, advantage: float, weight: Callable[[float], float]) -> Tokens:
    """-sg(w(rho)) A log pi, rho = pi(y) / mu(y) with the current pi."""
    rho = (new - mu).sum().exp().item()
    return -weight(rho) * advantage * new


def pg_seq_is(mu: Tokens, old: Tokens, new: Tokens, advantage: float, h: Hyperparameters) -> Tokens:
    """The unbiased one."""
    return _policy_gradient(mu, new, advantage, lambda rho: rho)


def pg_seq_tis(mu: Tokens, old: Tokens, new: Tokens, advantage: float, h: Hyperparameters) -> Tokens:
    """Truncated at C."""
    return _policy_gradient(mu, new, advantage, lambda rho: min(rho, h["correction_cap"]))


def pg_seq_mis(mu: Tokens, old: Tokens, new: Tokens, advantage: float, h: Hyperparameters) -> Tokens:
    """Masked beyond C."""
    return _policy_gradient(mu, new, advantage, lambda rho: rho if rho <= h["correction_cap"] else 0.0)


def dapo(mu: Tokens, old: Tokens, new: Tokens, advantage: float, h: Hyperparameters) -> Tokens:
    """PPO's clip with a higher upper bound and a dual clip: at most -A c where A < 0."""
    clipped = _ppo_clip(old, new, advantage, h)
    return clipped.clamp(max=-advantage * h["dual_clip"]) if advantage < 0 else clipped


def over_a_constant(losses: Sequence[Tokens], h: Hyperparameters) -> torch.Tensor:
    """(1/B) sum_i (1/L) sum_t: Dr.GRPO, L being the longest answer there may be."""
    return torch.stack([tokens.sum() / h["response_tokens"] for tokens in losses]).mean()


def over_each_answer(losses: Sequence[Tokens], h: Hyperparameters) -> torch.Tensor:
    """(1/B) sum_i (1/|y_i|) sum_t: GSPO."""
    return torch.stack([tokens.mean() for tokens in losses]).mean()


def over_all_tokens(losses: Sequence[Tokens], h: Hyperparameters) -> torch.Tensor:
    """(1 / sum_i |y_i|) sum_i sum_t: DAPO."""
    return torch.cat(list(losses)).mean()


AGGREGATIONS = {"constant": over_a_constant, "answer": over_each_answer, "tokens": over_all_tokens}
ALGORITHMS: dict[str, tuple[Callable[..., Tokens], bool, str]] = {
    "GRPO": (grpo, False, "constant"),
    "GRPO-Token-TIS": (grpo_token_tis, False, "constant"),
    "GRPO-Seq-MIS": (grpo_seq_mis, False, "constant"),
    "GSPO": (gspo, False, "answer"),
    "PG-Seq-IS": (pg_seq_is, False, "constant"),
    "PG-Seq-TIS": (pg_seq_tis, False, "constant"),
    "PG-Seq-MIS": (pg_seq_mis, False, "constant"),
    "DAPO": (dapo, True, "tokens"),
}
"""Name -> the loss of each token, whether the advantage is standardised, how the tokens are added up."""
