# SPDX-License-Identifier: Apache-2.0
"""Build the paper's sanity test for any model and dataset: the problems that the model solves some of the time.

Sampling takes hours, so answers are stored as they come. Scoring and selection start over in each run, so another
reward or range needs no sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fp16_patch.errors import Fp16PatchError, combine_errors
from fp16_patch.lab.data import scoring
from fp16_patch.lab.data.judging import judge
from fp16_patch.lab.data.output import Output, dataset_facts, file_digest, versions
from fp16_patch.lab.data.problem import Problem
from fp16_patch.lab.data.reading import DatasetSpec, ReadResult, read
from fp16_patch.lab.data.sample_store import SampleStore
from fp16_patch.lab.data.sampling import revision_of, sample_missing
from fp16_patch.lab.data.selection import KEEP, Selection
from fp16_patch.lab.data.settings import Sampling, check_options
from fp16_patch.lab.folder_lock import exclusive_lock

Say = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Sanity:
    """Configure a sanity test. ``batch`` problems are sampled at a time; ``vllm`` are arguments of ``vllm.LLM``."""

    dataset: DatasetSpec
    sampling: Sampling
    reward: str = "math"
    keep: tuple[float, float] = KEEP
    limit: int | None = None
    batch: int = 128
    vllm: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.keep[0] <= self.keep[1] <= 1:
            raise Fp16PatchError(
                f"--keep {self.keep[0]:g} {self.keep[1]:g}",
                code="value-not-allowed",
                allowed="two shares, 0 <= LOW <= HIGH <= 1",
                next_step="correct them, the lower one first",
            )
        check_options(self.vllm)


def build(sanity: Sanity, output: Output, say: Say = print) -> Selection[Problem]:
    """Sample the problems that are not sampled yet, score, select and write.

    Raises:
        Fp16PatchError: Before anything is loaded wherever possible. Stored samples are never lost.
    """
    found, reward = _preflight(sanity, output)
    with exclusive_lock(output.folder):
        answers = SampleStore(output.folder / f"{output.name}.sampling")
        answers.begin(_sampling_settings(sanity))
        say(f"{found} of {sanity.dataset.source.name}")
        sample_missing(sanity.sampling, found.problems, answers, sanity.batch, sanity.vllm, say)
        selection, lengths = judge(reward, found.problems, answers, sanity.keep, say)
        _check_some_kept(sanity, selection)
        manifest = {
            "dataset": dataset_facts(sanity.dataset, found),
            "sampling": {**asdict(sanity.sampling), "model_revision": revision_of(sanity.sampling.model)},
            "vllm": answers.recorded_options(),
            "reward": {"name": sanity.reward, "digest": file_digest(reward)},
            "keep": list(sanity.keep),
            "tried": len(selection.rates),
            "kept": len(selection.kept),
            "solve_rate_mean": selection.mean_rate(),
            "solve_rate_histogram": selection.histogram(),
            **asdict(lengths),
        }
        output.write(selection.kept, manifest, [selection.rates[problem] for problem in selection.kept])
    say(f"{len(selection.kept)} of {len(selection.rates)} problems kept: {output.parquet}, {output.jsonl}")
    return selection


def _preflight(sanity: Sanity, output: Output) -> tuple[ReadResult, Path]:
    """Return the problems and the reward's file, or raise one error about everything that is missing."""
    from fp16_patch.lab.data.model_folder import missing_model

    problems = list(missing_model("--model", sanity.sampling.model))

    def attempt(make: Callable[[], T]) -> T | None:
        try:
            return make()
        except Fp16PatchError as error:
            problems.append(error)
            return None

    found = attempt(lambda: read(sanity.dataset, sanity.limit))
    reward = attempt(lambda: scoring.reward_file(sanity.reward))
    attempt(lambda: output.check({"model": sanity.sampling.model, **sanity.dataset.source.facts()}))
    if problems or found is None or reward is None:
        raise combine_errors(problems)
    return found, reward


def _sampling_settings(sanity: Sanity) -> dict[str, Any]:
    """Return the settings that define the samples; a resumed run must have the same."""
    return {
        **asdict(sanity.sampling),
        **sanity.dataset.source.facts(),
        "template": sanity.dataset.template,
        "vllm": versions().get("vllm"),
    }


def _check_some_kept(sanity: Sanity, selection: Selection[Problem]) -> None:
    if not selection.kept:
        low, high = sanity.keep
        raise Fp16PatchError(
            f"none of {len(selection.rates)} problems is solved in {low:.0%} to {high:.0%} of the samples; of those "
            f"solved in 0-10%, 10-20% ... 90-100% there are {selection.histogram()}",
            code="nothing-selected",
            next_step="the answers are stored: inspect some and try another --keep or --reward; or sample with another "
            "--template, --max-tokens or model into another --out",
        )
