# SPDX-License-Identifier: Apache-2.0
"""Let OpenRLHF be imported without flash-attn, which has no CPU build.

``openrlhf.models.ring_attn_utils`` imports five names of it at its top, for sequence packing and ring attention.
Whoever else looks for flash-attn (transformers does, to choose an attention) does not find it.
"""

from __future__ import annotations

from typing import Any

from fp16_patch.errors import Fp16PatchError
from fp16_patch.lab.cpu import import_stubs

IMPORTER = "openrlhf.models.ring_attn_utils"


def _not_here(*_: Any, **__: Any) -> Any:
    raise Fp16PatchError(
        "sequence packing and ring attention need flash-attn, which has no CPU build",
        code="no-cpu-build",
        next_step="leave out --ds.packing_samples and --ds.ring_attn_size",
    )


NAMES: dict[str, dict[str, Any]] = {
    "flash_attn": {},
    "flash_attn.bert_padding": dict.fromkeys(("index_first_axis", "pad_input", "rearrange", "unpad_input"), _not_here),
    "flash_attn.utils": {},
    "flash_attn.utils.distributed": {"all_gather": _not_here},
}


def stand_in() -> None:
    """From now on this process can import OpenRLHF's models without flash-attn. Idempotent."""
    import_stubs.stand_in(IMPORTER, NAMES)
