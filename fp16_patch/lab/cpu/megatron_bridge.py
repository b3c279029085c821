# SPDX-License-Identifier: Apache-2.0
"""Run megatron-bridge with megatron-core's own layers and experts, and with weights that gloo can scatter."""

from __future__ import annotations

import re
from typing import Any

from fp16_patch.lab.cpu.releases import MEGATRON_BRIDGE_RANK
from fp16_patch.patching import replace, wrap

_LOCAL_EXPERT = re.compile(r"\.local_experts\.(\d+)\.(.+)$")


@replace(
    "megatron.bridge.models.gpt_provider:transformer_engine_layer_spec",
    **MEGATRON_BRIDGE_RANK,
    reason="The bridge builds every GPT model from TransformerEngine's layers unless the provider is given others, "
    "which no configuration file can do. It also has a specification of megatron-core's own layers, and knows their "
    "names in Hugging Face checkpoints.",
    upstream="no setting chooses local_layer_spec; not reported",
    remove_when="transformer_impl=local is enough",
    fingerprint="7c731a4f475ae329",
)
def _cpu_megatron_bridge_local_layers(config: Any) -> Any:
    from megatron.bridge.models.gpt_provider import local_layer_spec

    return local_layer_spec(config)


@wrap(
    "megatron.bridge.models.conversion.param_mapping:MegatronParamMapping.scatter_to_tp_ranks",
    **MEGATRON_BRIDGE_RANK,
    reason="gloo reads a tensor that is not contiguous as if it were. Row-parallel weights arrive wrong, without an "
    "error.",
    upstream="torch.distributed.scatter over gloo does not check; not reported",
    remove_when="gloo refuses, or copies, parts that are not contiguous",
)
def _cpu_megatron_bridge_contiguous_splits(original: Any, self: Any, splits: Any, *args: Any, **kwargs: Any) -> Any:
    return original(self, splits and [split.contiguous() for split in splits], *args, **kwargs)


@wrap(
    "megatron.bridge.models.conversion.model_bridge:_megatron_local_name_to_global",
    **MEGATRON_BRIDGE_RANK,
    reason="Without TransformerEngine experts are not grouped, and they keep their local number. With expert "
    "parallelism every rank then loads the experts of the first rank, without an error.",
    upstream="not reported",
    remove_when="_megatron_local_name_to_global knows local_experts",
)
def _cpu_megatron_bridge_expert_numbers(
    original: Any, models: Any, config: Any, param_name: str, vp_stage: Any = None
) -> str:
    from megatron.core import parallel_state

    name: str = original(models, config, param_name, vp_stage)
    if _LOCAL_EXPERT.search(name) is None or ".adapter." in name:
        return name
    first = parallel_state.get_expert_model_parallel_rank() * (
        config.num_moe_experts // parallel_state.get_expert_model_parallel_world_size()
    )
    return _LOCAL_EXPERT.sub(lambda match: f".local_experts.{first + int(match[1])}.{match[2]}", name)


@wrap(
    "megatron.bridge.models.conversion.param_mapping:MegatronParamMapping.gather_from_ep_ranks",
    **MEGATRON_BRIDGE_RANK,
    reason="The bridge expects the number of an expert at the end of the name, where grouped experts have it. The "
    "export of experts that are not grouped ends in a ValueError.",
    upstream="not reported",
    remove_when="gather_from_ep_ranks knows local_experts",
)
def _cpu_megatron_bridge_expert_names(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    local_name = self.megatron_param
    self.megatron_param = _LOCAL_EXPERT.sub(r".\2\1", local_name)  # the grouped experts' form: linear_fc1.weight3
    try:
        return original(self, *args, **kwargs)
    finally:
        self.megatron_param = local_name
