# SPDX-License-Identifier: Apache-2.0
"""An instrument for experiments: vLLM's linear layers rounded to fewer bits of significand than their dtype has.

``FP16_PATCH_ROLLOUT_SIGNIFICAND=5`` rounds, in vLLM's worker and nowhere else, every value that a linear layer hands
on: the projections of attention and MLP, and the logits. To 5 explicit bits, that is; FP16 has 10, BF16 has 7. The
exponent's range stays the dtype's own. Not rounded: weights, products and sums inside a layer, embeddings, norms,
activations, the inside of attention, the residual stream. Nothing of the trainer is rounded. A dtype with no more bits
than that is left as it is. Unset, nothing is patched. Experts and quantized layers have kernels of their own, and are
not rounded.

It makes the rollout's policy differ from the trainer's by as much as one likes, with everything else the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fp16_patch import envs
from fp16_patch.engines.vllm.precision import register_row
from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.cpu.plan import apply_when_imported
from fp16_patch.patching import Patch

if TYPE_CHECKING:
    import torch

VARIABLE = envs.ROLLOUT_SIGNIFICAND
FEWEST, MOST = 1, 10


def rounded(x: torch.Tensor, bits: int) -> torch.Tensor:
    """``x`` to ``bits`` explicit bits of significand, to nearest, ties to even; any shape, float16, bfloat16, float32.

    As a float with that significand and the dtype's own exponent would hold it: what is beyond the largest becomes
    infinite, subnormals keep the spacing of the smallest normal numbers. NaN and infinities stay.
    """
    import torch

    explicit, integer = {
        torch.float16: (10, torch.int16),
        torch.bfloat16: (7, torch.int16),
        torch.float32: (23, torch.int32),
    }[x.dtype]
    if (dropped := explicit - bits) <= 0:
        return x
    # In the bits of a float, the next larger magnitude is the next larger integer: a carry is right by itself.
    raw = x.view(integer)
    odd = (raw >> dropped) & 1
    nearest = (raw + (odd + ((1 << (dropped - 1)) - 1))) & -(1 << dropped)
    return torch.where(x.isnan(), x, nearest.view(x.dtype))


def requested_bits() -> int | None:
    """Return the number of bits that :data:`VARIABLE` sets; None if it is unset.

    Raises:
        Fp16PatchError: If it is not a whole number in range.
    """
    text = os.environ.get(VARIABLE, "")
    if not text:
        return None
    if not text.isdecimal() or not FEWEST <= int(text) <= MOST:
        raise Fp16PatchError(
            f"{VARIABLE}={text!r}",
            code="value-not-allowed",
            allowed=f"{FEWEST} to {MOST} explicit bits of significand, or the variable unset: no rounding",
        )
    return int(text)


def activate() -> None:
    """Patch vLLM's linear layers and add the precision report's row, if :data:`VARIABLE` is set."""
    if requested_bits() is not None:
        apply_when_imported(PATCHES)
        register_row("linear_outputs", rounded_layers)


def rounded_layers(model: torch.nn.Module) -> str | None:
    """Return the precision report's row for a live vLLM model; None if no layer is rounded."""
    kernels = [kernel for layer in model.modules() if (kernel := getattr(layer, "cpu_linear", None)) is not None]
    bits = [kernel.bits for kernel in kernels if isinstance(kernel, RoundedLinear)]
    return f"{bits[0]} bits of significand in {len(bits)} of {len(kernels)}" if bits else None


class RoundedLinear:
    """A kernel ``(x, weight, bias) -> y`` of vLLM's CPU backend, with ``y`` rounded."""

    def __init__(self, kernel: Callable[..., torch.Tensor], bits: int) -> None:
        self.kernel, self.bits = kernel, bits

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return rounded(self.kernel(x, weight, bias), self.bits)


def _round_outputs(original: Callable[..., Any]) -> Callable[..., Any]:
    bits = requested_bits()
    assert bits is not None  # else it is not among the patches

    def dispatch_cpu_unquantized_gemm(layer: Any, remove_weight: bool) -> None:
        original(layer, remove_weight)  # at every weight update anew; it leaves convolutions and experts alone
        if layer.weight.ndim == 2:
            layer.cpu_linear = RoundedLinear(layer.cpu_linear, bits)

    return dispatch_cpu_unquantized_gemm


PATCHES = (
    Patch(
        name="vllm-cpu-rounded-linears",
        target="vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm",
        kind="wrap",
        distribution="vllm-cpu",
        versions=">=0.32,<0.33",
        process="vLLM worker",
        reason=f"An experiment's instrument, applied only where {VARIABLE} asks for it: the outputs of linear layers "
        "have that many bits of significand.",
        upstream="not a defect",
        remove_when="the experiment has no more questions",
        make=_round_outputs,
        parameters=("layer", "remove_weight"),
    ),
)
