# SPDX-License-Identifier: Apache-2.0
"""Measure how much mismatch training tolerates: run the dose-response recipes and write docs/results-toy.md.

    toy_experiment.py OUT [--recipes NAME ...] [--arms NAME ...] [--seeds N ...] [--steps N]

Runs that OUT or benchmarks/toy_experiment.jsonl already holds are not repeated, so a later call adds arms and seeds.
Without arms and seeds only the page is written. The record of a run is a few kB of JSON: its curves, and the accuracy
of the trained policy, sampled from its weights in FP32 without rounding.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recorded_curves import count_not_finite, finite, record_curve, rounded
from toy_experiment_page import write_page
from toy_experiment_records import RUNS, mean, read_records

from fp16_patch.lab.launch.run import run_recipe
from fp16_patch.lab.loading.load import find, load
from fp16_patch.lab.logs.runs import ArmRun, read_run
from fp16_patch.lab.toy.sampling import solved_counts
from fp16_patch.lab.toy.task import Problem, token_limits

RECIPES = ("dose-response", "dose-response-pg-seq-is")
"""Recipes with longer answers run only if --recipes names them."""
SEED_KEYS = ("data.seed", "actor_rollout_ref.rollout.seed")
"""Seeds of the problems' order and of vLLM's sampling. All runs start from the same policy."""
CURVES = ("reward", "prob_diff_mean", "k3_kl", "grad_norm")
MEANS = {
    "answer_tokens": "response_length/mean",
    "effective_samples": "actor/rollout_corr/rollout_is_eff_sample_size",
}
"""verl's metrics that are averaged over the steps. The second is the effective sample size of the answers' importance
weights, as a share of the answers; 1 if all are equal."""
SAMPLES = 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipes", nargs="*", default=RECIPES)
    parser.add_argument("--arms", nargs="*", default=[])
    parser.add_argument("--seeds", nargs="*", type=int, default=[])
    parser.add_argument("--steps", type=int, help="fewer than the recipe's: a look, kept apart from whole runs")
    arguments = parser.parse_args()
    for seed, recipe, arm in ((s, r, a) for s in arguments.seeds for r in arguments.recipes for a in arguments.arms):
        steps = arguments.steps or int(str(load(find(recipe)).hyperparameters["steps"].value))
        if not any(
            (r["recipe"], r["arm"], r["seed"], r["asked"]) == (recipe, arm, seed, steps) for r in read_records()
        ):
            run_one(arguments.out, recipe, arm, seed, steps)
    write_page()
    return int(any(record["status"] != "completed" for record in read_records()))


def run_one(out: Path, recipe: str, arm: str, seed: int, steps: int) -> None:
    """Run one arm and append its record. A complete run in OUT is recorded without running it again."""
    folder, world = out / f"{recipe}-{steps}-seed{seed}", out / "world"
    if world.exists() and not (folder / "world").exists():
        shutil.copytree(world, folder / "world")  # an unchanged toy task is reused
    overrides = [*(f"{key}={seed}" for key in SEED_KEYS), f"trainer.total_training_steps={steps}"]
    run_recipe(find(recipe), folder, arms=[arm], overrides=overrides, resume=True)
    if not world.exists():
        shutil.copytree(folder / "world", world)
    run = next(run for run in read_run(folder)[1] if run.name == arm)
    record = {"recipe": recipe, "arm": arm, "seed": seed, "asked": steps, **measured(run, folder)}
    with RUNS.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(record) + "\n")


def measured(run: ArmRun, folder: Path) -> dict[str, Any]:
    """Return the record of a run; values that were not logged are null. ``non_finite`` counts steps."""
    curves = {name: record_curve(run.series, name, 4) for name in CURVES}
    means = {name: logged_values(folder / run.name / "metrics.jsonl", key) for name, key in MEANS.items()}
    not_finite = {name: len(values) - len(finite(values)) for name, values in means.items()}
    not_finite |= {name: count_not_finite(curve) for name, curve in curves.items()}
    rollout = (run.precision_report or {}).get("roles", {}).get("rollout", {})
    return {
        "status": run.status,
        "steps": len(run.series.steps),
        "policy_accuracy": policy_accuracy(folder, folder / run.name),
        **{name: rounded(mean(values), 4) for name, values in means.items()},
        **curves,
        "non_finite": {name: count for name, count in not_finite.items() if count},
        "skipped": run.skipped_updates,
        "seconds": run.result.get("seconds"),
        "started": run.result.get("started"),
        "rollout": rollout,
        "versions": run.result.get("versions"),
    }


def logged_values(metrics: Path, name: str) -> list[Any]:
    """Return one of verl's metrics in every step that logged it. verl writes NaN and infinity as null."""
    rows = [json.loads(line)["data"] for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [row[name] for row in rows if name in row]


def policy_accuracy(folder: Path, arm: Path) -> float | None:
    """Return the accuracy of the run's saved policy on its training problems, in FP32."""
    saved = sorted(arm.glob("checkpoints/global_step_*/actor/huggingface/config.json"))
    if not saved:
        return None
    import torch
    from transformers import AutoTokenizer, Qwen2ForCausalLM

    model = Qwen2ForCausalLM.from_pretrained(saved[-1].parent, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "world" / "model")
    problems = list(problems_of(folder / "world" / "train.jsonl"))
    _, tokens = token_limits(len(problems[0].digits))
    rng = torch.Generator().manual_seed(0)
    solved = solved_counts(model, tokenizer, problems, samples=SAMPLES, max_tokens=tokens, rng=rng)
    return round(sum(solved) / (SAMPLES * len(problems)), 4)


def problems_of(file: Path) -> Iterator[Problem]:
    for line in file.read_text(encoding="utf-8").splitlines():
        yield Problem(tuple(map(int, json.loads(line)["input"].removesuffix("=").split("+"))))


if __name__ == "__main__":
    sys.exit(main())
