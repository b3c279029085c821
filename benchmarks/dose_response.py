# SPDX-License-Identifier: Apache-2.0
"""Run the dose-response without the frameworks: policy, problems and loss of the recipes, in FP32, in one process.

    dose_response.py OUT --recipes dose-response --bits 0 3 2 1 --seeds 0 1 [--steps 60]
                     [--updates N] [--learning-rate X] [--layers N]

The rollout's linear layers are rounded to that many explicit bits of significand (0: not rounded); the trainer's are
not. There is no vLLM, no verl and no half precision, and a run takes minutes. mu is computed in one pass over the
answers, not token by token. Each run appends a line to benchmarks/dose_response.jsonl; runs recorded there are not
repeated. The toy tasks are built in OUT. The options of the last line change the recipe: updates per step, the learning
rate, the layers of the toy policy.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen2ForCausalLM

from fp16_patch.lab.cpu.rounded_rollout import rounded
from fp16_patch.lab.loading.load import available, find, load
from fp16_patch.lab.recipes.hyperparameters import values
from fp16_patch.lab.rewards.toy_reward import compute_score
from fp16_patch.lab.toy import TOY_TASKS, build
from fp16_patch.lab.toy.sampling import sample, solved_counts
from fp16_patch.lab.toy.task import Problem
from fp16_patch.mismatch.metrics import mismatch_metrics

RUNS = Path(__file__).with_suffix(".jsonl")
VARIED = ("updates", "learning_rate", "layers")
"""Settings that are recorded only if they differ from the recipe and its toy task."""
IDENTITY = ("recipe", "bits", "seed", "steps", *VARIED)
RECIPES = [path.stem for path in available() if path.stem.startswith("dose-response")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, required=True)
    parser.add_argument("--bits", nargs="+", type=int, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--updates", type=int, help="updates per step, instead of the recipe's")
    parser.add_argument("--learning-rate", type=float, help="instead of the recipe's")
    parser.add_argument("--layers", type=int, help="layers of the policy, instead of the toy task's")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    varied = {name: value for name in VARIED if (value := getattr(arguments, name))}
    for seed, recipe, bits in product(arguments.seeds, arguments.recipes, arguments.bits):
        run = {"recipe": recipe, "bits": bits, "seed": seed, "steps": arguments.steps, **varied}
        recorded = [json.loads(line) for line in RUNS.read_text(encoding="utf-8").splitlines()]
        if any(all(run.get(name) == other.get(name) for name in IDENTITY) for other in recorded):
            continue
        print(run, flush=True)
        started = time.monotonic()
        steps, accuracy = train(build_toy_task(arguments.out, recipe, arguments.layers), run)
        curves = {name: [_recorded(step[name]) for step in steps] for name in steps[0]}
        record = {**run, "policy_accuracy": accuracy, **curves, "seconds": round(time.monotonic() - started)}
        with RUNS.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")


def build_toy_task(out: Path, recipe: str, layers: int | None) -> Path:
    """Build the recipe's toy task, optionally with another number of layers; return its folder."""
    name = str(load(find(recipe)).world)
    if layers is None:
        return build(out / name, settings=TOY_TASKS[name]).path
    return build(out / f"{name}-{layers}-layers", settings=replace(TOY_TASKS[name], layers=layers)).path


def train(task: Path, run: dict[str, Any]) -> tuple[list[dict[str, float]], float]:
    """Return the metrics of each step, and the accuracy of the trained policy on the problems, without rounding."""
    loaded, bits, seed = load(find(run["recipe"])), run["bits"], run["seed"]
    algorithm, h = loaded.algorithm.name, {**values(loaded.hyperparameters), **run}
    tokenizer = AutoTokenizer.from_pretrained(task / "model")
    model = Qwen2ForCausalLM.from_pretrained(task / "model", dtype=torch.float32)
    lines = [json.loads(line) for line in (task / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    problems = [Problem(tuple(map(int, line["input"].removesuffix("=").split("+")))) for line in lines]
    optimizer = torch.optim.AdamW(
        model.parameters(), h["learning_rate"], h["adam_betas"], eps=h["adam_eps"], weight_decay=h["weight_decay"]
    )
    rng, batches = torch.Generator().manual_seed(seed), _batches(problems, h["prompts"], seed)
    found = []
    for step in range(h["steps"]):
        batch = next(batches)
        prompts = tokenizer([problem.prompt for problem in batch], return_tensors="pt").input_ids
        with rounded_linears(model, bits), torch.no_grad():
            answers = sample(model, prompts, samples=h["rollouts"], max_tokens=h["response_tokens"], rng=rng)
            ids = torch.cat([prompts.repeat_interleave(h["rollouts"], 0), answers], 1)
            mu = log_probs(model, ids, answers)
        with torch.no_grad():
            pi_old = log_probs(model, ids, answers)
        mask = (answers == model.config.eos_token_id).cumsum(1) - (answers == model.config.eos_token_id).long() == 0
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        rewards = torch.tensor([compute_score("", t, batch[i // h["rollouts"]].answer) for i, t in enumerate(texts)])
        groups = rewards.view(-1, h["rollouts"])
        advantages = (groups - groups.mean(1, keepdim=True)).flatten()
        for part in torch.arange(len(ids)).chunk(h["updates"]):
            pi = log_probs(model, ids[part], answers[part])
            a, keep = advantages[part, None], mask[part]
            if algorithm == "GRPO":
                r = (pi - pi_old[part]).exp()
                loss = torch.maximum(-a * r, -a * r.clamp(1 - h["clip_low"], 1 + h["clip_high"]))
            else:
                rho = ((pi.detach() - mu[part]) * keep).sum(1, keepdim=True).clamp(-20, 20).exp()
                loss = -rho * a * pi
            optimizer.zero_grad()
            ((loss * keep).sum(1) / h["response_tokens"]).mean().backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), h["gradient_clip"])
            optimizer.step()
        mismatch = mismatch_metrics(mu, pi_old, mask)
        found.append(
            {
                "reward": rewards.mean().item(),
                "prob_diff_mean": mismatch["prob_diff_mean"],
                "k3_kl": mismatch["k3_kl"],
                "answer_tokens": mismatch["tokens"] / len(ids),
                "grad_norm": norm.item(),
            }
        )
        print(step + 1, {name: f"{value:.3g}" for name, value in found[-1].items()}, flush=True)
    solved = solved_counts(model, tokenizer, problems, samples=16, max_tokens=h["response_tokens"], rng=rng)
    return found, round(sum(solved) / (16 * len(problems)), 4)


def _recorded(value: float) -> float | str:
    """Return four digits, or ``"NaN"`` for what JSON does not have."""
    return float(f"{value:.4g}") if math.isfinite(value) else "NaN"


def log_probs(model: Any, ids: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Return the log-probs of the answers' tokens, in nats, ``[answers, tokens]``."""
    logits = model(input_ids=ids).logits[:, -answers.shape[1] - 1 : -1]
    found: torch.Tensor = logits.log_softmax(-1).gather(-1, answers[..., None]).squeeze(-1)
    return found


@contextmanager
def rounded_linears(model: torch.nn.Module, bits: int) -> Iterator[None]:
    """Round the outputs of all linear layers to ``bits`` in this context; 0 rounds nothing."""
    linears = [layer for layer in model.modules() if bits and isinstance(layer, torch.nn.Linear)]
    hooks = [layer.register_forward_hook(lambda _layer, _inputs, y: rounded(y, bits)) for layer in linears]
    yield
    for hook in hooks:
        hook.remove()


def _batches(problems: list[Problem], size: int, seed: int) -> Iterator[list[Problem]]:
    """Yield batches of every problem once per epoch, in an order that depends on ``seed``."""
    order = random.Random(seed)
    while True:
        shuffled = order.sample(problems, len(problems))
        yield from (shuffled[i : i + size] for i in range(0, len(shuffled), size))


if __name__ == "__main__":
    main()
