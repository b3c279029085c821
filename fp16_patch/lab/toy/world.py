# SPDX-License-Identifier: Apache-2.0
"""The toy world: a half-trained policy, the problems within its reach, and a manifest of how they were made.

In the spirit of the paper's sanity test: sample every candidate problem 40 times from the policy and keep those
solved in 20 to 80% of the samples. All of them are within reach, none is done, so RL should near 100%.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fp16_patch.lab.data import problem, selection, writing
from fp16_patch.lab.data.problem import user_message
from fp16_patch.lab.rewards import toy_reward
from fp16_patch.lab.toy.folder import intact, replacing, seal
from fp16_patch.lab.toy.model import new_model, save, tiny_model
from fp16_patch.lab.toy.pretrain import pretrain
from fp16_patch.lab.toy.selection import select
from fp16_patch.lab.toy.task import DATA_SOURCE, Problem, distinct_problems, token_limits
from fp16_patch.lab.toy.tokenizer import character_tokenizer


@dataclass(frozen=True)
class Settings:
    """What a world is made of. The defaults are the quickstart's; tests shrink them."""

    digits: int = 5
    hidden: int = 64
    layers: int = 8
    experts: int = 0
    """Of each layer's mixture; 0 is a dense policy."""
    batch: int = 32
    max_steps: int = 800
    target: float = 0.5
    """Sampled accuracy at which supervised training stops."""
    train: int = 320
    val: int = 64
    samples: int = selection.SAMPLES
    keep_from: float = selection.KEEP[0]
    keep_to: float = selection.KEEP[1]
    """A problem is kept when its share of solved samples lies between the two, both included."""


WORLDS = {
    "toy": Settings(),
    "toy-moe": Settings(layers=4, experts=4),
    "toy-long": Settings(digits=10, max_steps=1600),
}
"""By the names that recipes call them."""


@dataclass(frozen=True)
class World:
    """A world on disk, as the frameworks are pointed at it."""

    path: Path
    manifest: dict[str, Any]

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def train(self) -> Path:
        return self.path / "train.parquet"

    @property
    def val(self) -> Path:
        return self.path / "val.parquet"

    @property
    def train_prompts(self) -> Path:
        """The same problems as JSONL, for OpenRLHF's ``--data.prompt_dataset``."""
        return self.path / "train.jsonl"

    @property
    def val_prompts(self) -> Path:
        """The same for OpenRLHF's ``--eval.dataset``."""
        return self.path / "val.jsonl"

    @property
    def reward(self) -> Path:
        """The verifier's file, for verl's ``custom_reward_function.path`` (function ``compute_score``) and OpenRLHF's
        ``--reward.remote_url`` (function ``reward_func``)."""
        return Path(__file__).parents[1] / "rewards" / "toy_reward.py"


def build(
    out: Path,
    seed: int = 0,
    progress: Callable[[str], None] = print,
    settings: Settings | None = None,
) -> World:
    """Make the world of ``seed`` in ``out``, or return the one already there if it is that one and unharmed.

    ``progress`` gets a line every few seconds. The same seed and library versions give, on one kind of CPU, the
    same weights and parquet files, byte for byte. ``out`` appears in one piece or not at all. Raises
    ``Fp16PatchError`` when ``out`` holds something else, or when a seed does not lead to a usable policy.
    """
    out, settings = out.absolute(), settings or Settings()
    identity = {
        "seed": seed,
        "settings": asdict(settings),
        "versions": {name: version(name) for name in ("torch", "transformers", "pyarrow")},
        "source": _source_digest(),
    }
    if (manifest := intact(out, identity)) is not None:
        progress(f"{out} is up to date")
        return World(out, manifest)
    with replacing(out) as folder, _one_thread():
        manifest = {**identity, **_make(folder, seed, settings, progress)}
        seal(folder, manifest)
    return World(out, manifest)


def untrained_world(out: Path, *, train: int = 64, val: int = 16, seed: int = 0, experts: int = 0) -> World:
    """The same files around an untrained 0.1M-parameter model, in about a second, for end-to-end tests."""
    out = out.absolute()
    problems = distinct_problems(Settings.digits, random.Random(seed))
    with replacing(out) as folder:
        tiny_model(folder / "model", seed=seed, experts=experts)
        _write_problems(folder, "train", problems[val : val + train])
        _write_problems(folder, "val", problems[:val])
        manifest = {"seed": seed, "train": train, "val": val, **_limits(Settings.digits)}
        seal(folder, manifest)
    return World(out, manifest)


def _make(folder: Path, seed: int, settings: Settings, progress: Callable[[str], None]) -> dict[str, Any]:
    """Train, select and write; return what the manifest tells of it."""
    progress("loading torch and transformers")
    started = time.monotonic()
    import torch

    tokenizer = character_tokenizer()
    model = new_model(tokenizer, hidden=settings.hidden, layers=settings.layers, experts=settings.experts, seed=seed)
    limits = _limits(settings.digits)
    steps = pretrain(
        model,
        tokenizer,
        digits=settings.digits,
        target=settings.target,
        max_steps=settings.max_steps,
        batch=settings.batch,
        seed=seed,
        progress=progress,
    )
    chosen = select(
        model,
        tokenizer,
        distinct_problems(settings.digits, random.Random(seed)),
        needed=settings.val + settings.train,
        samples=settings.samples,
        keep=(settings.keep_from, settings.keep_to),
        max_tokens=limits["max_response_tokens"],
        rng=torch.Generator().manual_seed(seed),
        progress=progress,
    )
    # The order of trial is random and no two problems are permutations of each other: val is held out.
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
        **limits,
        "accuracy_before": {
            "candidates": chosen.mean_rate(),
            "train": chosen.mean_rate(train),
            "val": chosen.mean_rate(val),
        },
        "solve_rate_histogram": chosen.histogram(),
        "seconds": round(time.monotonic() - started, 1),
    }


def _write_problems(folder: Path, split: str, problems: Sequence[Problem], rates: Sequence[float] = ()) -> None:
    """OpenRLHF's file holds the text that the chat template makes of a prompt: it is given the same tokens."""
    shared = [problem.Problem(user_message(p.prompt), p.answer, DATA_SOURCE, "arithmetic") for p in problems]
    writing.write(folder, split, shared, rates)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch on one core: at this size a second gains next to nothing, it loses much where the machine is
    shared, and sums would round differently on machines with another number of cores."""
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
    """Digest of this package's code, and of what it shares: another code is another world."""
    shared = [Path(str(module.__file__)) for module in (problem, selection, writing, toy_reward)]
    sources = [*sorted(Path(__file__).parent.glob("*.py")), *shared]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()
