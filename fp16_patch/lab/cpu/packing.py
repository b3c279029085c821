# SPDX-License-Identifier: Apache-2.0
"""Run OpenRLHF's sequence packing (``--ds.packing_samples``) without flash-attn, which has no CPU build.

OpenRLHF packs the answers of a micro-batch into one row, without padding, and lets position ids restart at each
of them. transformers reads the answers' borders from these, for PyTorch's attention as for flash-attn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fp16_patch.lab.cpu.releases import TRANSFORMERS_RANK
from fp16_patch.patching import wrap

if TYPE_CHECKING:
    import torch


@wrap(
    "transformers.modeling_utils:PreTrainedModel._check_and_adjust_attn_implementation",
    **TRANSFORMERS_RANK,
    reason="OpenRLHF replaces any other attention by flash_attention_2 where samples are packed. PyTorch's attention "
    "computes the same, with a mask that keeps the packed answers apart.",
    upstream="OpenRLHF cli/train_ppo_ray.py:704",
    remove_when="OpenRLHF packs samples with another attention",
)
def _cpu_flash_attention(original: Any, self: Any, attn_implementation: str | None, *args: Any, **kwargs: Any) -> Any:
    flash = attn_implementation is not None and "flash_attention" in attn_implementation
    return original(self, "sdpa" if flash else attn_implementation, *args, **kwargs)


def unpad_input(
    hidden_states: torch.Tensor, attention_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, torch.Tensor]:
    """Return the rows of ``[batch, length, ...]`` at the mask's positions, as flash-attn's function of this name does.

    Also return their indices in the flattened batch, the cumulative lengths (int32, from 0), the longest length and
    all lengths.
    """
    lengths = attention_mask.sum(-1).int()
    indices = attention_mask.flatten().nonzero().flatten()
    cumulative = lengths.new_zeros(len(lengths) + 1)
    cumulative[1:] = lengths.cumsum(0)
    return flatten_batch(hidden_states)[indices], indices, cumulative, int(lengths.max()), lengths


def pad_input(hidden_states: torch.Tensor, indices: torch.Tensor, batch: int, length: int) -> torch.Tensor:
    """Return ``[batch, length, ...]`` with the rows at their indices, and zeros elsewhere."""
    whole = hidden_states.new_zeros(batch * length, *hidden_states.shape[1:])
    return whole.index_copy(0, indices, hidden_states).unflatten(0, (batch, length))


def index_first_axis(rows: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return the rows at ``indices``."""
    return rows[indices]


def flatten_batch(tensor: torch.Tensor, _pattern: str = "b s ... -> (b s) ...") -> torch.Tensor:
    """Return ``[batch, length, ...]`` as ``[batch * length, ...]``: the one pattern of einops that OpenRLHF uses."""
    return tensor.flatten(0, 1)
