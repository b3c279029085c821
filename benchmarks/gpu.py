# SPDX-License-Identifier: Apache-2.0
"""Run every check that needs a GPU, in a few minutes; needs PyTorch and transformers only.

    PYTHONPATH=. python benchmarks/gpu.py            # one CUDA device
    PYTHONPATH=. python benchmarks/gpu.py --device cpu --layers 2 --hidden 64 --steps 2   # test the script itself

1. FSDP1 and FSDP2 with verl's mixed precision: the rows of the precision report, and an overflow that is skipped.
2. Log-prob error of BF16 and FP16 against FP32 on one model: the ratio behind the paper's argument.
3. Time and peak memory of a training step, FP16 over BF16.

Prints a table and exits with 1 if a check fails. Ratios compare runs in this process; absolute figures apply to this
machine only.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from transformers import Qwen2Config, Qwen2ForCausalLM

from fp16_patch.engines.fsdp.precision import describe_fsdp

FAILED: list[str] = []


def check(what: str, holds: bool, found: object) -> None:
    print(f"  {'ok  ' if holds else 'FAIL'}  {what}: {found}")
    if not holds:
        FAILED.append(what)


def new_model(options: argparse.Namespace) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    heads = max(1, options.hidden // 64)
    config = Qwen2Config(
        vocab_size=4096,
        hidden_size=options.hidden,
        intermediate_size=3 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        initializer_range=0.05,  # log-probs that vary, as a trained model's do
    )
    return Qwen2ForCausalLM(config).to(options.device)


def sharded(model: torch.nn.Module, version: int, dtype: torch.dtype, device: str) -> torch.nn.Module:
    if version == 1:
        policy = MixedPrecision(param_dtype=dtype, reduce_dtype=torch.float32, buffer_dtype=torch.float32)
        return FullyShardedDataParallel(model, mixed_precision=policy, device_id=torch.device(device))
    fully_shard(
        model,
        mesh=init_device_mesh(device, (1,)),
        mp_policy=MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=True),
    )
    return model


def step(model, optimizer, scaler, tokens, dtype, device) -> None:
    optimizer.zero_grad()
    with torch.autocast(device, dtype=dtype):
        loss = model(input_ids=tokens, labels=tokens).loss
    (scaler.scale(loss) if scaler else loss).backward()
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [(p.to_local() if hasattr(p, "to_local") else p).detach().clone() for p in model.parameters()]


def precision_rows(options: argparse.Namespace, tokens: torch.Tensor) -> None:
    for version in (1, 2):
        if version == 1 and options.device == "cpu":
            print("FSDP1 needs an accelerator: not checked on a CPU")
            continue
        print(f"FSDP{version}, FP16, dynamic loss scaling")
        model = sharded(new_model(options), version, torch.float16, options.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        scaler = ShardedGradScaler(device=options.device, init_scale=2.0**40)  # above FP16's range: must overflow
        before = weights(model)
        step(model, optimizer, scaler, tokens, torch.float16, options.device)
        unchanged = all(map(torch.equal, before, weights(model)))
        check("an overflow leaves the weights bit for bit", unchanged, f"scale now {scaler.get_scale():g}")
        for _ in range(30):
            step(model, optimizer, scaler, tokens, torch.float16, options.device)
        check("the scale comes down and training goes on", not all(map(torch.equal, before, weights(model))), "")
        rows = describe_fsdp(model, optimizer, scaler, autocast=torch.float16, defer_sync=False)
        wanted = {"master_weights": "float32", "compute": "float16", "gradient_reduction": "float32"}
        wanted |= {"gradient_accumulation": "float32", "optimizer_state": "float32"}
        for row, value in wanted.items():
            check(row.replace("_", " "), rows[row] == value, rows[row])


def log_prob_error(options: argparse.Namespace, tokens: torch.Tensor) -> None:
    print("log-prob error against FP32, mean over tokens")
    model = new_model(options).eval()

    def log_probs(dtype: torch.dtype | None) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(options.device, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            logits = model(input_ids=tokens).logits
        return logits.float().log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])

    exact = log_probs(None)
    errors = {d: (log_probs(d) - exact).abs().mean().item() for d in (torch.bfloat16, torch.float16)}
    ratio = errors[torch.bfloat16] / errors[torch.float16]
    print(f"  BF16 {errors[torch.bfloat16]:.2e}  FP16 {errors[torch.float16]:.2e}")
    check("BF16 over FP16 is at least 5 (three bits make 8)", ratio >= 5, f"{ratio:.1f}")


def step_cost(options: argparse.Namespace, tokens: torch.Tensor) -> None:
    print(f"training step, FSDP2, {tokens.numel()} tokens, median of {options.steps}")
    seconds, peak = {}, {}
    for dtype in (torch.bfloat16, torch.float16):
        model = sharded(new_model(options), 2, dtype, options.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        scaler = ShardedGradScaler(device=options.device) if dtype is torch.float16 else None
        times = []
        for i in range(options.steps + 3):
            if i == 3 and options.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            step(model, optimizer, scaler, tokens, dtype, options.device)
            if options.device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        seconds[dtype] = statistics.median(times[3:])
        peak[dtype] = torch.cuda.max_memory_allocated() / 2**30 if options.device == "cuda" else float("nan")
        del model, optimizer, scaler
    bf16, fp16 = torch.bfloat16, torch.float16
    for name, dtype in (("BF16", bf16), ("FP16", fp16)):
        print(f"  {name} {seconds[dtype] * 1e3:.1f} ms, {peak[dtype]:.2f} GiB")
    print(f"  FP16 over BF16: time {seconds[fp16] / seconds[bf16]:.2f}, memory {peak[fp16] / peak[bf16]:.2f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: nothing was checked; --device cpu tries the script itself", file=sys.stderr)
        return 2
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29571")
    dist.init_process_group("nccl" if options.device == "cuda" else "gloo")
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"torch {torch.__version__} on {name}; {options.layers} layers, hidden {options.hidden}")
    tokens = torch.randint(4096, (4, options.tokens // 4), device=options.device)
    for part in (precision_rows, log_prob_error, step_cost):
        part(options, tokens)
    dist.destroy_process_group()
    print(f"{len(FAILED)} checks failed" if FAILED else "all checks hold")
    return int(bool(FAILED))


if __name__ == "__main__":
    sys.exit(main())
