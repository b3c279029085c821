# SPDX-License-Identifier: Apache-2.0
"""Round the outputs of vLLM's linear layers to fewer bits of significand: an instrument for experiments.

``FP16_PATCH_ROLLOUT_SIGNIFICAND=5`` rounds the outputs of linear layers in vLLM's workers to 5 explicit bits. FP16 has
10, BF16 has 7. These are the projections of attention and MLP, and the logits. The exponent keeps the dtype's range,
and a dtype with no more bits than that is not changed. If the variable is unset, nothing is patched.

Not rounded: weights, products and sums inside a layer, embeddings, norms, activations, the inside of attention, the
residual stream, experts, quantized layers, and the trainer.

The rollout policy then differs from the training policy by a chosen amount, with everything else equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fp16_patch import envs
from fp16_patch.engines.vllm.precision import register_row
from fp16_patch.lab.cpu.releases import VLLM_WORKER
from fp16_patch.patching import plan, register_import_hooks, wrap
from fp16_patch.precision.start_checks import SIGNIFICAND_BITS, significand_bits

if TYPE_CHECKING:
    import torch

VARIABLE = envs.ROLLOUT_SIGNIFICAND
FEWEST, MOST = SIGNIFICAND_BITS
requested_bits = significand_bits


def rounded(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Round to ``bits`` explicit bits of significand, to nearest, ties to even.

    The result is what a float with that significand and the dtype's exponent can hold. Values beyond the largest become
    infinite. Subnormals keep the spacing of the smallest normal numbers. NaN and infinities are not changed.

    Args:
        x: float16, bfloat16 or float32, any shape.
        bits: 1 or more.

    Returns:
        A tensor of the same shape and dtype.
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


def activate() -> None:
    """Patch vLLM's linear layers and add the precision report's row, if :data:`VARIABLE` is set."""
    if requested_bits() is not None:
        register_import_hooks(plan(PATCHES))
        register_row("linear_outputs", rounded_layers)


def rounded_layers(model: torch.nn.Module) -> str | None:
    """Return the precision report's row for a live vLLM model; None if no layer is rounded."""
    kernels = [kernel for layer in model.modules() if (kernel := getattr(layer, "cpu_linear", None)) is not None]
    bits = [kernel.bits for kernel in kernels if isinstance(kernel, RoundedLinear)]
    return f"{bits[0]} bits of significand in {len(bits)} of {len(kernels)}" if bits else None


class RoundedLinear:
    """Wrap a kernel ``(x, weight, bias) -> y`` of vLLM's CPU backend and round ``y``."""

    def __init__(self, kernel: Callable[..., torch.Tensor], bits: int) -> None:
        self.kernel, self.bits = kernel, bits

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return the kernel's output, rounded."""
        return rounded(self.kernel(x, weight, bias), self.bits)


@wrap(
    "vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm",
    **VLLM_WORKER,
    reason=f"An instrument for experiments, applied only if {VARIABLE} is set: the outputs of linear layers have that "
    "many bits of significand.",
    upstream="not a defect",
    remove_when="the experiments are done",
)
def _vllm_cpu_rounded_linears(original: Any, layer: Any, remove_weight: bool) -> None:
    bits = requested_bits()
    assert bits is not None  # it is not applied otherwise
    original(layer, remove_weight)  # runs at every weight update; changes neither convolutions nor experts
    if layer.weight.ndim == 2:
        layer.cpu_linear = RoundedLinear(layer.cpu_linear, bits)


PATCHES = (_vllm_cpu_rounded_linears,)
