# SPDX-License-Identifier: Apache-2.0
"""Measure what loss scaling adds to an optimizer step: stock BF16, stock FP16 and ours, in one run.

    PYTHONPATH=. python benchmarks/loss_scaling.py            # 50M parameters, FSDP2, 1 and 2 ranks; some minutes
    PYTHONPATH=. python benchmarks/loss_scaling.py --json     # the same as one JSON object, table included
    PYTHONPATH=. python benchmarks/loss_scaling.py --device cuda --ranks 1

Needs PyTorch and transformers. Stock clipping is torch's clip_grad_norm_: verl 0.9.1's fsdp2_clip_grad_norm_ makes
the same calls, but needs a CUDA device for the norm.

An update is everything between the backward and ``zero_grad``. All arms use the same weights, the same optimizer
and the same gradients (the FP16 ones times the scale), and clip:

* bf16: clip, finiteness check, step, as verl's optimizer_step; no scaler.
* stock: torch's ShardedGradScaler with the same clip, as verl runs FP16: unscale, clip, step, update. Timed without
  an optimizer only; torch 2.13's cannot step a fused one on a CPU (its found_inf has the wrong shape).
* ours: ``clip_and_step``, with the metrics of the gradients and without.

The arms alternate in one process. Each repetition takes as long as its slowest rank; a cell is the median. The cores
are divided among the ranks. "no optimizer" does nothing: what is left is the scaler and the clip.
Peak memory is measured for one arm in its own process, with fused AdamW, minus the process before it had a model (CPU:
Linux, resident; CUDA: allocated). It covers weights, gradients, optimizer state and temporary memory of the update, but
not activations. It is the median of five processes; a single one is off by up to 0.6 %.
The share of the metrics is what they add to an update with fused AdamW, over a whole FP16 step of the same model.

Gradients are random numbers: no time here depends on their values. Only the ratios apply to other machines.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from transformers import Qwen2Config, Qwen2ForCausalLM

from fp16_patch.engines.fsdp.scaler import FsdpLossScaler
from fp16_patch.engines.fsdp.step import clip_and_step
from fp16_patch.lab.cpu import matmul
from fp16_patch.precision.loss_scaling import LossScaling

MAX_NORM = 1.0
MEMORY_RUNS = 5
ARMS = ("bf16", "stock", "ours", "ours, no metrics")
TARGETS = {  # the worst case over rank counts: at most this, or at least it
    "fused_over_bf16": ("at most", 0.90),
    "other_over_bf16": ("at most", 1.03),
    "stock_clip_over_ours": ("at least", 1.5),
    "peak_memory_over_bf16": ("at most", 1.01),
    "metrics_share": ("at most", 0.01),
}


class NoOptimizer(torch.optim.SGD):
    def step(self, closure: object = None) -> None:
        """Do nothing."""


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=1e-6, fused=True),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=1e-6, foreach=True),
    "AdamW for-loop": lambda p: torch.optim.AdamW(p, lr=1e-6, foreach=False),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=1e-6, momentum=0.9),
    "no optimizer": NoOptimizer,
}


class Rig:
    """Hold a sharded model, gradients to fill it with, and the scalers."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.device = options.device
        hidden = 64 * max(1, round(8 * (options.parameters / 50e6) ** (1 / 3)))
        config = Qwen2Config(
            vocab_size=32 * hidden,
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_hidden_layers=max(1, -(-int(options.parameters - 32 * hidden**2) // (13 * hidden**2))),
            num_attention_heads=hidden // 64,
            num_key_value_heads=hidden // 64,
            tie_word_embeddings=True,
        )
        self.model = Qwen2ForCausalLM(config).to(self.device)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        policy = MixedPrecisionPolicy(param_dtype=torch.float16, reduce_dtype=torch.float32)
        mesh = init_device_mesh(self.device, (dist.get_world_size(),))
        for part in (*self.model.model.layers, self.model):
            fully_shard(part, mesh=mesh, mp_policy=policy)
        self.tokens = torch.randint(config.vocab_size, (1, options.tokens), device=self.device)
        self.stock = ShardedGradScaler(self.device)
        self.ours = FsdpLossScaler(LossScaling(), self.device, module=self.model)
        for scaler in (self.stock, self.ours):
            scaler.scale(torch.ones((), device=self.device))
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def fill(self, scale: float, source: list[torch.Tensor] | None = None) -> list[torch.Tensor]:
        """Put gradients of norm about 7, times ``scale``, into the model; ``source`` instead of new ones."""
        gradients = [p.grad.to_local() for p in self.model.parameters()]
        for i, gradient in enumerate(gradients):
            gradient.copy_(source[i]) if source else gradient.normal_(std=7 / self.parameters**0.5)
            gradient.mul_(scale)
        return gradients

    def scale_of(self, arm: str) -> float:
        return {"bf16": 1.0, "stock": self.stock.get_scale()}.get(arm) or self.ours.get_scale()

    def update(self, arm: str, optimizer: torch.optim.Optimizer) -> None:
        if arm.startswith("ours"):
            clip_and_step(self.ours, optimizer, MAX_NORM, headroom=arm == "ours")
            return
        if arm == "stock":
            self.stock.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if arm == "stock":
            self.stock.step(optimizer)
            self.stock.update()
        elif torch.isfinite(norm):
            optimizer.step()
        norm.item()  # verl returns a float

    def training_step(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        loss = self.model(self.tokens, labels=self.tokens, use_cache=False).loss
        self.ours.scale(loss).backward()
        self.update("ours", optimizer)

    def seconds(self, call: Callable[..., None], *arguments: Any) -> float:
        """Return the time of the slowest rank."""
        self.wait()
        start = time.perf_counter()
        call(*arguments)
        if self.device == "cuda":
            torch.cuda.synchronize()
        taken = torch.tensor(time.perf_counter() - start, device=self.device)
        dist.all_reduce(taken, dist.ReduceOp.MAX)
        return taken.item()

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        dist.barrier()


def times(options: argparse.Namespace) -> dict[str, Any]:
    """Return the milliseconds of every arm with every optimizer, and of an FP16 training step."""
    rig = Rig(options)
    typical, fastest = {}, {}
    source = [gradient.clone() for gradient in rig.fill(1.0)]
    for name, new in OPTIMIZERS.items():
        optimizer = new(rig.model.parameters())
        arms = [arm for arm in ARMS if arm != "stock" or name == "no optimizer"]
        taken: dict[str, list[float]] = {arm: [] for arm in arms}
        for turn in range(options.repeats + 2):
            for arm in arms[turn % len(arms) :] + arms[: turn % len(arms)]:
                rig.fill(rig.scale_of(arm), source)
                taken[arm].append(1e3 * rig.seconds(rig.update, arm, optimizer))
        typical[name] = {arm: median(values[2:]) for arm, values in taken.items()}
        fastest[name] = {arm: min(values[2:]) for arm, values in taken.items()}
    del source
    optimizer = OPTIMIZERS["AdamW fused"](rig.model.parameters())
    steps = [1e3 * rig.seconds(rig.training_step, optimizer) for _ in range(4)]
    return {"parameters": rig.parameters, "ms": typical, "fastest_ms": fastest, "training_step_ms": median(steps[1:])}


def memory(options: argparse.Namespace) -> float:
    """Return the peak bytes of one arm's updates, on the rank with the most."""
    warm_up = torch.zeros(1, device=options.device)
    before = 0 if warm_up.is_cuda else resident("VmRSS")
    rig = Rig(options)
    optimizer = OPTIMIZERS["AdamW fused"](rig.model.parameters())
    for turn in range(3):  # the first makes the optimizer's state
        rig.fill(rig.scale_of(options.arm))
        if turn == 1 and rig.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        elif turn == 1:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        rig.update(options.arm, optimizer)
    peak = torch.cuda.max_memory_allocated() if rig.device == "cuda" else resident("VmHWM") - before
    most = torch.tensor(float(peak), dtype=torch.float64, device=rig.device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return most.item()


def resident(field: str) -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status[field].split()[0])


def job(rank: int, ranks: int, what: Callable[..., Any], options: argparse.Namespace, folder: str) -> None:
    """Run ``what`` as one of ``ranks`` processes; rank 0 leaves the result in ``folder``."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))
    if options.device == "cuda":
        torch.cuda.set_device(rank)
    else:
        matmul.enable()  # stock Half products take for ever on a CPU
    backend = "nccl" if options.device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    result = what(options)
    if rank == 0:
        Path(folder, "result.json").write_text(json.dumps(result))
    dist.destroy_process_group()


def spawn(ranks: int, what: Callable[..., Any], options: argparse.Namespace) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(job, (ranks, what, options, folder), nprocs=ranks)
        return json.loads(Path(folder, "result.json").read_text())


def case(ranks: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the times and the five ratios for one number of ranks."""
    found = spawn(ranks, times, options)
    ms = found["ms"]
    peaks: dict[str, list[float]] = {"bf16": [], "ours": []}
    for _ in range(MEMORY_RUNS):
        for arm, found_so_far in peaks.items():
            found_so_far.append(spawn(ranks, memory, argparse.Namespace(**vars(options), arm=arm)))
    peak = {arm: median(values) for arm, values in peaks.items()}
    over = {name: row["ours"] / row["bf16"] for name, row in ms.items()}
    metrics = ms["AdamW fused"]["ours"] - ms["AdamW fused"]["ours, no metrics"]
    ratios = {
        "fused_over_bf16": over["AdamW fused"],
        "other_over_bf16": max(over[name] for name in over if name not in ("AdamW fused", "no optimizer")),
        "stock_clip_over_ours": ms["no optimizer"]["stock"] / ms["no optimizer"]["ours"],
        "peak_memory_over_bf16": peak["ours"] / peak["bf16"],
        "metrics_share": metrics / found["training_step_ms"],
    }
    return {"ranks": ranks, **found, "peak_bytes": peak, **ratios}


def show(found: dict[str, Any], options: argparse.Namespace) -> None:
    print(f"\n{found['parameters'] / 1e6:.1f}M parameters, ranks: {found['ranks']}; an update in ms")
    print(f"{'':>16}" + "".join(f"{arm:>18}" for arm in ARMS) + f"{'ours/bf16':>12}")
    for name, row in found["ms"].items():
        cells = "".join(f"{row[arm]:18.2f}" if arm in row else f"{'-':>18}" for arm in ARMS)
        print(f"{name:>16}{cells}{row['ours'] / row['bf16']:12.3f}")
    print(f"stock over ours, no optimizer: {found['stock_clip_over_ours']:.2f}")
    print(f"FP16 training step, {options.tokens} tokens a rank: {found['training_step_ms']:.0f} ms")
    print("peak memory, MiB a rank: " + ", ".join(f"{arm} {b / 2**20:.1f}" for arm, b in found["peak_bytes"].items()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--parameters", type=float, default=50e6, help="at least so many")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--tokens", type=int, default=1024, help="of the training step, on every rank")
    parser.add_argument("--json", action="store_true", help="print one JSON object; the tables go to stderr")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    options = parser.parse_args()
    if options.device == "cuda" and torch.cuda.device_count() < max(options.ranks):
        print(f"{torch.cuda.device_count()} CUDA devices: too few for --ranks {options.ranks}", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"{os.cpu_count()} CPU cores"
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        print(f"torch {torch.__version__} on {name}; median of {options.repeats}")
        cases = []
        for ranks in options.ranks:
            cases.append(case(ranks, options))
            show(cases[-1], options)
        print("\nworst over the rank counts")
        worst, missed = {}, 0
        for key, (direction, target) in TARGETS.items():
            worst[key] = (max if direction == "at most" else min)(found[key] for found in cases)
            met = worst[key] <= target if direction == "at most" else worst[key] >= target
            missed += not met
            print(f"{key:>24} {worst[key]:8.4f}  {direction} {target}: {'met' if met else 'MISSED'}")
    if options.json:
        print(json.dumps({**worst, "cases": cases}))
    return int(options.check and missed > 0)


if __name__ == "__main__":
    sys.exit(main())
