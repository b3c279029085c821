# SPDX-License-Identifier: Apache-2.0
"""Build the toy task: a half-trained policy, the problems within its reach, and a manifest.

As in the paper's sanity test, every candidate problem is sampled 40 times, and kept if 20 to 80% of the samples are
right. All of these problems are within reach and none is solved, so RL should approach 100%.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fp16_patch.lab.data import problem, selection, writing
from fp16_patch.lab.data.problem import user_message
from fp16_patch.lab.rewards import toy_reward
from fp16_patch.lab.toy.folder import atomic_dir, verify_manifest, write_manifest
from fp16_patch.lab.toy.model import new_model, save, tiny_model
from fp16_patch.lab.toy.pretrain import pretrain
from fp16_patch.lab.toy.selection import select
from fp16_patch.lab.toy.settings import Settings
from fp16_patch.lab.toy.task import DATA_SOURCE, Problem, distinct_problems, token_limits
from fp16_patch.lab.toy.tokenizer import character_tokenizer


class ToyTask:
    """The files of a toy task on disk."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        self.model = path / "model"
        self.train, self.val = path / "train.parquet", path / "val.parquet"
        """The problems for verl."""
        self.train_prompts, self.val_prompts = path / "train.jsonl", path / "val.jsonl"
        """The same problems for OpenRLHF's ``--data.prompt_dataset`` and ``--eval.dataset``."""
        self.reward = Path(str(toy_reward.__file__))
        """For ``custom_reward_function.path`` and ``--reward.remote_url``."""


def build(
    out: Path,
    seed: int = 0,
    progress: Callable[[str], None] = print,
    settings: Settings | None = None,
) -> ToyTask:
    """Build a toy task in ``out``, or return the existing one if it has the same settings and is unchanged.

    The same seed and library versions give the same files, byte for byte, on one kind of CPU. ``out`` is written
    atomically. ``progress`` gets a line every few seconds.

    Raises:
        Fp16PatchError: If ``out`` holds something else, or the seed does not lead to a usable policy.
    """
    out, settings = out.absolute(), settings or Settings()
    identity = {
        "seed": seed,
        "settings": asdict(settings),
        "versions": {name: version(name) for name in ("torch", "transformers", "pyarrow")},
        "source": _source_digest(),
    }
    if (manifest := verify_manifest(out, identity)) is not None:
        progress(f"{out} is up to date")
        return ToyTask(out, manifest)
    with atomic_dir(out) as folder, _one_thread():
        manifest = {**identity, **_make(folder, seed, settings, progress)}
        write_manifest(folder, manifest)
    return ToyTask(out, manifest)


def untrained_toy_task(out: Path, *, train: int = 64, val: int = 16, seed: int = 0, experts: int = 0) -> ToyTask:
    """Write the same files around an untrained 0.1M-parameter model, in about a second, for end-to-end tests."""
    out = out.absolute()
    problems = distinct_problems(Settings.digits, random.Random(seed))
    with atomic_dir(out) as folder:
        tiny_model(folder / "model", seed=seed, experts=experts)
        _write_problems(folder, "train", problems[val : val + train])
        _write_problems(folder, "val", problems[:val])
        manifest = {"seed": seed, "train": train, "val": val, **_limits(Settings.digits)}
        write_manifest(folder, manifest)
    return ToyTask(out, manifest)


def _make(folder: Path, seed: int, settings: Settings, progress: Callable[[str], None]) -> dict[str, Any]:
    """Train, select and write; return the manifest's entries."""
    progress("loading torch and transformers")
    started = time.monotonic()
    tokenizer = character_tokenizer()
    model = new_model(tokenizer, hidden=settings.hidden, layers=settings.layers, experts=settings.experts, seed=seed)
    steps = pretrain(model, tokenizer, settings, seed, progress)
    chosen = select(model, tokenizer, settings, seed, progress)
    # The order of trial is random and no two problems are permutations of each other, so val is held out.
    val, train = chosen.kept[: settings.val], chosen.kept[settings.val :][: settings.train]
    save(model, tokenizer, folder / "model")
    for split, problems in (("train", train), ("val", val)):
        rates = [chosen.rates[problem] for problem in problems]
        _write_problems(folder, split, problems, rates)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "supervised_steps": steps,
        "candidates": len(chosen.rates),
        "kept": len(chosen.kept),
        "train": len(train),
        "val": len(val),
        **_limits(settings.digits),
        "accuracy_before": {
            "candidates": chosen.mean_rate(),
            "train": chosen.mean_rate(train),
            "val": chosen.mean_rate(val),
        },
        "solve_rate_histogram": chosen.histogram(),
        "seconds": round(time.monotonic() - started, 1),
    }


def _write_problems(folder: Path, split: str, problems: Sequence[Problem], rates: Sequence[float] = ()) -> None:
    shared = [problem.Problem(user_message(p.prompt), p.answer, DATA_SOURCE, "arithmetic") for p in problems]
    writing.write(folder, split, shared, rates)


@contextmanager
def _one_thread() -> Iterator[None]:
    # At this size a second core gains little and costs much on a shared machine. The number of threads also changes
    # how sums round.
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _limits(digits: int) -> dict[str, int]:
    prompt, response = token_limits(digits)
    return {"max_prompt_tokens": prompt, "max_response_tokens": response}


def _source_digest() -> str:
    """Return a digest of the code that builds the task: other code makes another task."""
    shared = [Path(str(module.__file__)) for module in (problem, selection, writing, toy_reward)]
    sources = [*sorted(Path(__file__).parent.glob("*.py")), *shared]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()
