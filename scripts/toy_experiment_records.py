# SPDX-License-Identifier: Apache-2.0
"""The runs kept in benchmarks/, those of the recipes and those without the frameworks, and what is measured of one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from fp16_patch.lab.recipes.load import find, load

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "benchmarks" / "toy_experiment.jsonl"
PLAIN = ROOT / "benchmarks" / "dose_response.jsonl"
VARIED = {"updates": "{} updates", "learning_rate": "learning rate {:g}", "layers": "{} layers"}
"""What a run without the frameworks may have otherwise than its recipe, in words."""
AN_EPOCH = 10
"""Steps in which every problem is asked once: what training accuracy is averaged over."""

Record = Mapping[str, Any]


def read_records() -> list[dict[str, Any]]:
    """The runs of the recipes, in the order of their arms, and seeds."""
    arms = list(load(find("dose-response")).arms)
    return sorted(_lines(RUNS), key=lambda r: (r["recipe"], arms.index(r["arm"]), -r["asked"], r["seed"]))


def read_plain(*, varied: bool = False) -> list[dict[str, Any]]:
    """The runs without the frameworks, as if they were those of a recipe; or those that vary something of theirs."""
    records = [
        {
            **record,
            "arm": f"bits-{record['bits']}" if record["bits"] else "fp32",
            "status": "completed",
            "asked": record["steps"],
            "skipped": None,
            "answer_tokens": fmean(record["answer_tokens"]),
            "varied": ", ".join(words.format(record[what]) for what, words in VARIED.items() if what in record),
        }
        for record in _lines(PLAIN)
        if varied == any(what in record for what in VARIED)
    ]
    return sorted(records, key=lambda r: (r["varied"], r["recipe"], -(r["bits"] or math.inf), r["seed"]))


def _lines(file: Path) -> list[dict[str, Any]]:
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    found = []
    for record in map(json.loads, lines):
        recipe = load(find(record["recipe"]))
        found.append({**record, "algorithm": recipe.algorithm.name, "world": recipe.world})
    return found


def accuracy(record: Record) -> float:
    """Training accuracy over the last epoch, as the (rounded) rollout samples it."""
    return fmean(record["reward"][-AN_EPOCH:])


def by_quarters(record: Record) -> list[float]:
    """Training accuracy over each quarter of the run."""
    rewards = record["reward"]
    ends = [len(rewards) * i // 4 for i in range(5)]
    return [fmean(rewards[start:end]) for start, end in pairwise(ends)]


def token_mismatch(record: Record) -> float | None:
    """Mean |pi - mu| over the steps of a run; None where the algorithm logs none."""
    return mean(record["prob_diff_mean"])


def answer_kl(record: Record) -> float | None:
    """KL[mu|pi] (k3) of a whole answer in nats, mean over the steps: its tokens' add up."""
    kl = mean(record["k3_kl"])
    return None if kl is None else kl * record["answer_tokens"]


def mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
