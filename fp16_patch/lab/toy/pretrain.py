# SPDX-License-Identifier: Apache-2.0
"""Train the toy policy with supervision until about half of its answers are right, which RL can improve on."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.toy.sampling import solved_counts
from fp16_patch.lab.toy.settings import Settings
from fp16_patch.lab.toy.task import demonstration, draw, token_limits

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

WARM_UP_STEPS = 50
EVAL_INTERVAL = 25
EVAL_PROBLEMS, EVAL_SAMPLES = 64, 4
IGNORE_INDEX = -100  # torch's cross_entropy skips this label


def pretrain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    settings: Settings,
    seed: int,
    progress: Callable[[str], None],
) -> int:
    """Train ``model`` in place, in float32, on right answers until it solves ``settings.target`` of sampled problems.

    The stop depends on accuracy, not on time: a slow machine makes the same policy as a fast one.

    Returns:
        The number of steps.

    Raises:
        Fp16PatchError: If ``max_steps`` steps are not enough.
    """
    import torch

    digits, max_steps, target = settings.digits, settings.max_steps, settings.target
    rng = random.Random(seed)
    eval_rng = torch.Generator().manual_seed(seed)
    eval_problems = [draw(digits, rng) for _ in range(EVAL_PROBLEMS)]

    def rate(done: int) -> float:
        return min((done + 1) / WARM_UP_STEPS, 1 - done / max_steps)

    optimizers = _optimizers(model)
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, rate) for optimizer in optimizers]
    solved = 0.0
    model.train()
    for step in range(1, max_steps + 1):
        inputs, labels = _demonstrations(tokenizer, digits, settings.batch, rng)
        logits = model(input_ids=inputs).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepped in (*optimizers, *schedules):
            stepped.step()
        if step % EVAL_INTERVAL == 0:
            counts = solved_counts(
                model, tokenizer, eval_problems, samples=EVAL_SAMPLES, max_tokens=token_limits(digits)[1], rng=eval_rng
            )
            solved = sum(counts) / (EVAL_PROBLEMS * EVAL_SAMPLES)
            progress(f"step {step}: loss {loss.item():.2f}, solves {solved:.0%} (stops at {target:.0%})")
            if solved >= target:
                return step
    raise Fp16PatchError(
        f"the toy policy solves {solved:.0%} after {max_steps} steps with seed {seed}",
        code="toy-world-failed",
        allowed=f"at least {target:.0%}",
        next_step="build the toy task with another seed",
    )


def _optimizers(model: PreTrainedModel) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices and AdamW for the rest.

    AdamW alone takes twice the steps to the same accuracy, and RL then improves that policy more slowly.
    """
    import torch

    matrices = [parameter for parameter in model.model.layers.parameters() if parameter.ndim == 2]
    chosen = set(map(id, matrices))
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=1.5e-2, weight_decay=0.0),
        torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _demonstrations(
    tokenizer: PreTrainedTokenizerFast, digits: int, batch: int, rng: random.Random
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and labels, int64 ``[batch, length]``; the labels of prompts and padding are ignored."""
    drawn = [draw(digits, rng) for _ in range(batch)]
    texts = [problem.prompt + demonstration(problem, rng) + tokenizer.eos_token for problem in drawn]
    encoded = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    labels = encoded.input_ids.masked_fill(encoded.attention_mask == 0, IGNORE_INDEX)
    labels[:, : len(drawn[0].prompt)] = IGNORE_INDEX  # every number is one digit: all prompts have one length
    return encoded.input_ids, labels
