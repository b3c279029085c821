# SPDX-License-Identifier: Apache-2.0
"""Refuse verl's fused kernels where they cannot run.

They multiply with the weight of the ``lm_head`` and never call it (``models/transformers/dense_common.py``). Under
FSDP2 verl 0.9.1 shards an ``lm_head`` on its own if it is not tied to the embedding (``_select_fsdp2_wrap_targets`` in
``utils/fsdp_utils.py``). Its weight is then whole only during its own call, and the product of a shard and a whole
tensor raises at the first log-prob. Tied, or under FSDP1, they compute in the flag's dtype (``test_fused_kernels.py``).
"""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig

from fp16_patch.engines.vllm.fp16_support import read_model_config
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.verl.config.setting import SECTIONS, refusal, value_of

KEY = "actor_rollout_ref.model.use_fused_kernels"
SHARDED_HEAD = "FSDP2 shards the lm_head of this model on its own, and the fused kernels use its weight without a call"


def problems(config: DictConfig) -> Iterator[Fp16PatchError]:
    """Yield the error of a model whose ``lm_head`` the fused kernels cannot use."""
    fsdp2 = value_of(config, f"{SECTIONS['actor']}.strategy") == "fsdp2"
    path = value_of(config, "actor_rollout_ref.model.path")
    if fsdp2 and path and value_of(config, KEY) and _has_own_head(read_model_config(str(path))):
        key = f"{SECTIONS['actor']}.strategy"
        next_step = f"set {KEY}=False, or {key}=fsdp and {SECTIONS['reference']}.strategy=fsdp"
        yield refusal(KEY, True, SHARDED_HEAD, f"False, or {key}=fsdp", next_step)


def _has_own_head(model: dict[str, object]) -> bool:
    """Return whether the model says, or its type's default is, that the head is not the embedding."""
    from transformers import CONFIG_MAPPING

    kind, says = model.get("model_type"), model.get("tie_word_embeddings")
    if says is None and kind in CONFIG_MAPPING:
        says = getattr(CONFIG_MAPPING[kind], "tie_word_embeddings", None)
    return says is False
