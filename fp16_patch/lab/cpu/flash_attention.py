# SPDX-License-Identifier: Apache-2.0
"""Make OpenRLHF importable without flash-attn, which has no CPU build.

``openrlhf.models.ring_attn_utils`` imports five of its names at the top, for sequence packing and ring attention. Other
modules that check for flash-attn (transformers does, to choose an attention) do not find it.
"""

from __future__ import annotations

from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.cpu import import_stubs

IMPORTER = "openrlhf.models.ring_attn_utils"


def _unavailable(*_: Any, **__: Any) -> Any:
    raise Fp16PatchError(
        "sequence packing and ring attention need flash-attn, which has no CPU build",
        code="no-cpu-build",
        next_step="leave out --ds.packing_samples and --ds.ring_attn_size",
    )


NAMES: dict[str, dict[str, Any]] = {
    "flash_attn": {},
    "flash_attn.bert_padding": dict.fromkeys(
        ("index_first_axis", "pad_input", "rearrange", "unpad_input"), _unavailable
    ),
    "flash_attn.utils": {},
    "flash_attn.utils.distributed": {"all_gather": _unavailable},
}


def install_stub() -> None:
    """Make OpenRLHF's models importable without flash-attn in this process. Idempotent."""
    import_stubs.install_stub(IMPORTER, NAMES)
