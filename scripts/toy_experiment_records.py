# SPDX-License-Identifier: Apache-2.0
"""Read the runs in benchmarks/, with and without the frameworks, and compute their measures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from recorded_curves import Value, count_not_finite, finite

from fp16_patch.lab.loading.load import find, load

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "benchmarks" / "toy_experiment.jsonl"
PLAIN = ROOT / "benchmarks" / "dose_response.jsonl"
VARIED = {"updates": "{} updates", "learning_rate": "learning rate {:g}", "layers": "{} layers"}
"""Settings that a run without the frameworks may change, with their labels."""
AN_EPOCH = 10
"""Steps per epoch: training accuracy is averaged over one epoch."""

Record = Mapping[str, Any]


def read_records() -> list[dict[str, Any]]:
    """Return the runs of the recipes, ordered by arm and seed."""
    arms = list(load(find("dose-response")).arms)
    return sorted(_lines(RUNS), key=lambda r: (r["recipe"], arms.index(r["arm"]), -r["asked"], r["seed"]))


def read_plain(*, varied: bool = False) -> list[dict[str, Any]]:
    """Return the runs without the frameworks in the form of recipe runs, or those that vary a setting."""
    records = [
        {
            **record,
            "arm": f"bits-{record['bits']}" if record["bits"] else "fp32",
            "status": "completed",
            "asked": record["steps"],
            "skipped": None,
            "answer_tokens": mean(record["answer_tokens"]),
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
        curves = {name: values for name, values in record.items() if isinstance(values, list)}
        not_finite = {name: count for name, values in curves.items() if (count := count_not_finite(values))}
        facts = {"algorithm": recipe.algorithm.name, "world": recipe.world}
        found.append({**record, **facts, "non_finite": not_finite | record.get("non_finite", {})})
    return found


def accuracy(record: Record) -> float | None:
    """Return the training accuracy over the last epoch, as sampled by the (rounded) rollout."""
    return mean(record["reward"][-AN_EPOCH:])


def by_quarters(record: Record) -> list[float | None]:
    """Return the training accuracy over each quarter of the run."""
    rewards = record["reward"]
    ends = [len(rewards) * i // 4 for i in range(5)]
    return [mean(rewards[start:end]) for start, end in pairwise(ends)]


def token_mismatch(record: Record) -> float | None:
    """Return the mean |pi - mu| over the steps of a run, or None if the algorithm does not log it."""
    return mean(record["prob_diff_mean"])


def answer_kl(record: Record) -> float | None:
    """Return KL[mu|pi] (k3) of a whole answer in nats, the sum over its tokens, averaged over the steps."""
    kl = mean(record["k3_kl"])
    return None if kl is None or record["answer_tokens"] is None else kl * record["answer_tokens"]


def mean(values: Sequence[Value]) -> float | None:
    """Return the mean of the finite values, None without any. ``recorded_curves.note`` says how many are not finite."""
    known = finite(values)
    return fmean(known) if known else None
