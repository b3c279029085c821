# SPDX-License-Identifier: Apache-2.0
"""The same policy with larger activations: RMSNorm undoes what the residual stream is multiplied by."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

WRITES_TO_THE_RESIDUAL_STREAM = ("embed_tokens.weight", "o_proj.weight", "down_proj.weight")


def rescale_policy(model: Path, out: Path, factor: float) -> Path:
    """Copy a Qwen2 or Llama model with an untied head, its residual stream times ``factor``, and return the copy.

    In FP32 and BF16 its log-probs stay the same up to rounding. In FP16 activations beyond 65504 overflow.
    """
    shutil.copytree(model, out)
    for file in out.glob("*.safetensors"):
        weights = {
            name: weight * factor if name.endswith(WRITES_TO_THE_RESIDUAL_STREAM) else weight
            for name, weight in load_file(file).items()
        }
        save_file(weights, file, metadata={"format": "pt"})
    return out
