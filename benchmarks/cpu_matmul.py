# SPDX-License-Identifier: Apache-2.0
"""Compare Half matrix products on the CPU in one run: PyTorch's own, through FP32 (ours), and BF16.

    python benchmarks/cpu_matmul.py

Prints the time of each product of a linear layer, the cost our kernels add to FP32 and BF16 calls, and the time of a
training step of a small Qwen2 under autocast. Only the ratios apply to other machines. Takes about 40 s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from statistics import median

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from fp16_patch.lab.cpu import matmul


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, 1 thread, best of several; ms\n")
    products()
    small_calls()
    training_steps()


def products() -> None:
    """Time the three products of a linear layer with ``rows`` tokens, ``inputs`` and ``outputs`` features."""
    print(f"{'rows x in x out':>18} {'product':>16} {HEADER}")
    for rows, inputs, outputs in ((16, 64, 256), (512, 64, 256), (512, 256, 256), (1024, 256, 688)):
        x, w, g = (torch.randn(shape) for shape in ((rows, inputs), (outputs, inputs), (rows, outputs)))
        for name, left, right in (("forward", x, w.t()), ("input gradient", g, w), ("weight gradient", g.t(), x)):
            times = side_by_side(partial(product, left, right), seconds=0.8)
            print(f"{f'{rows} x {inputs} x {outputs}':>18} {name:>16} {times}")


def product(left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype) -> Callable[[], object]:
    return partial(torch.mm, left.to(dtype), right.to(dtype))


def small_calls() -> None:
    """Time the detour through Python of a call that is not Half, with the smallest product."""
    print()
    for dtype in (torch.float32, torch.bfloat16):
        call = product(torch.randn(4, 4), torch.randn(4, 4), dtype)
        before, after = [], []
        for _ in range(2000):
            before.append(seconds_of(call))
        with ours():
            for _ in range(2000):
                after.append(seconds_of(call))
        print(f"cost added to a {dtype} call: {(median(after) - median(before)) * 1e6:.1f} us")


def training_steps() -> None:
    """Time forward and backward of a small Qwen2 with FP32 weights under autocast, as verl's FSDP engine runs it."""
    print(f"\n{'Qwen2, 8 x 64 tokens':>35} {HEADER}")
    for layers, hidden in ((4, 64), (8, 64), (4, 256)):
        times = side_by_side(partial(training_step, *small_qwen2(layers, hidden)), seconds=6)
        print(f"{f'{layers} layers, hidden {hidden}':>35} {times}")


def small_qwen2(layers: int, hidden: int) -> tuple[Qwen2ForCausalLM, torch.Tensor]:
    config = Qwen2Config(
        vocab_size=128,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
    )
    return Qwen2ForCausalLM(config), torch.randint(0, 128, (8, 64))


def training_step(model: Qwen2ForCausalLM, tokens: torch.Tensor, dtype: torch.dtype) -> Callable[[], object]:
    def step() -> None:
        model.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            loss = model(tokens, labels=tokens, use_cache=False).loss
        loss.backward()

    return step


HEADER = f"{'stock half':>11} {'ours':>9} {'bf16':>9}  stock/ours  ours/bf16"


def side_by_side(make: Callable[[torch.dtype], Callable[[], object]], seconds: float) -> str:
    """Print a line of the table: the fastest call of each kind, in ms, and the ratios.

    The three take turns for ``seconds``, so that whatever else the machine does disturbs all of them alike.
    """
    half, bf16 = make(torch.float16), make(torch.bfloat16)
    fastest = [float("inf")] * 3
    until = time.perf_counter() + seconds
    for turn in count():
        times = [seconds_of(half)]
        with ours():
            times.append(seconds_of(half))
        times.append(seconds_of(bf16))
        if turn > 0:  # the first warms up
            fastest = [min(pair) for pair in zip(fastest, times, strict=True)]
        if turn > 1 and time.perf_counter() > until:
            break
    stock, mine, other = (1e3 * value for value in fastest)
    return f"{stock:11.3f} {mine:9.3f} {other:9.3f} {stock / mine:10.1f}x {mine / other:9.1f}x"


def seconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@contextmanager
def ours() -> Iterator[None]:
    matmul.enable()
    try:
        yield
    finally:
        matmul.disable()


if __name__ == "__main__":
    main()
