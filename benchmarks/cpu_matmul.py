# SPDX-License-Identifier: Apache-2.0
"""Half matrix products on the CPU: PyTorch's own, through FP32 (ours), and BF16, side by side in one run.

    python benchmarks/cpu_matmul.py

Prints the time of each product of a linear layer, the cost our kernels add to FP32 and BF16 calls, and the time of a
training step of a small Qwen2 under autocast. Ratios, not times, carry over to another machine. About 40 s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from fp16_patch.platforms.cpu import matmul


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, 1 thread, best of several; ms\n")
    products()
    small_calls()
    training_steps()


def products() -> None:
    """The three products of a linear layer with ``rows`` tokens, ``inputs`` and ``outputs`` features."""
    print(f"{'rows x in x out':>18} {'product':>16} {'stock half':>11} {'ours':>9} {'bf16':>9}  stock/ours  ours/bf16")
    for rows, inputs, outputs in ((16, 64, 256), (512, 64, 256), (512, 256, 256), (1024, 256, 688)):
        x, w, g = (torch.randn(shape) for shape in ((rows, inputs), (outputs, inputs), (rows, outputs)))
        for name, left, right in (
            ("forward", x, w.t()),
            ("input gradient", g, w),
            ("weight gradient", g.t(), x),
        ):
            stock = best(torch.mm, left.half(), right.half())
            with ours():
                mine = best(torch.mm, left.half(), right.half())
            bf16 = best(torch.mm, left.bfloat16(), right.bfloat16())
            size = f"{rows} x {inputs} x {outputs}"
            print(
                f"{size:>18} {name:>16} {stock:11.3f} {mine:9.3f} {bf16:9.3f} {stock / mine:10.1f} {mine / bf16:10.1f}"
            )


def small_calls() -> None:
    """What a call that is not Half pays for passing through Python: seen best in a product that does nothing."""
    print()
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(4, 4).to(dtype)
        before = best(torch.mm, a, a)
        with ours():
            after = best(torch.mm, a, a)
        print(f"cost added to a {dtype} call: {(after - before) * 1e3:.1f} us")


def training_steps() -> None:
    """Forward and backward of a small Qwen2 with FP32 weights under autocast, as verl's FSDP engine runs it."""
    print(f"\n{'Qwen2, 8 x 64 tokens':>35} {'stock half':>11} {'ours':>9} {'bf16':>9}  stock/ours  ours/bf16")
    for layers, hidden in ((4, 64), (8, 64), (4, 256)):
        step = training_step(layers, hidden)
        stock = best(step, torch.float16, seconds=2.0)
        with ours():
            mine = best(step, torch.float16, seconds=2.0)
        bf16 = best(step, torch.bfloat16, seconds=2.0)
        size = f"{layers} layers, hidden {hidden}"
        print(f"{size:>35} {row(stock, mine, bf16)}")


def training_step(layers: int, hidden: int) -> Callable[[torch.dtype], None]:
    config = Qwen2Config(
        vocab_size=128,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
    )
    model = Qwen2ForCausalLM(config)
    tokens = torch.randint(0, 128, (8, 64))

    def step(dtype: torch.dtype) -> None:
        model.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            loss = model(tokens, labels=tokens, use_cache=False).loss
        loss.backward()

    return step


def row(stock: float, mine: float, bf16: float) -> str:
    return f"{stock:11.3f} {mine:9.3f} {bf16:9.3f} {stock / mine:10.1f}x {mine / bf16:9.1f}x"


def best(call: Callable[..., object], *arguments: object, seconds: float = 0.3) -> float:
    """Fastest of the calls that fit into ``seconds``, in ms: the one least disturbed by the rest of the machine."""
    fastest, until = float("inf"), time.perf_counter() + seconds
    call(*arguments)
    while fastest == float("inf") or time.perf_counter() < until:
        start = time.perf_counter()
        call(*arguments)
        fastest = min(fastest, time.perf_counter() - start)
    return fastest * 1e3


@contextmanager
def ours() -> Iterator[None]:
    matmul.enable()
    try:
        yield
    finally:
        matmul.disable()


if __name__ == "__main__":
    main()
