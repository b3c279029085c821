# SPDX-License-Identifier: Apache-2.0
"""megatron-bridge: layers and experts of megatron-core's own, and weights that gloo can scatter."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from fp16_patch.patching import Patch

DISTRIBUTION = "megatron-bridge"
RELEASES = "==0.3.1"


def _local(original: Callable[..., Any]) -> Callable[..., Any]:
    def transformer_engine_layer_spec(config: Any) -> Any:
        from megatron.bridge.models.gpt_provider import local_layer_spec

        return local_layer_spec(config)

    return transformer_engine_layer_spec


def _contiguous(original: Callable[..., Any]) -> Callable[..., Any]:
    def scatter_to_tp_ranks(self: Any, splits: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, splits and [split.contiguous() for split in splits], *args, **kwargs)

    return scatter_to_tp_ranks


_OWN_EXPERT = re.compile(r"\.local_experts\.(\d+)\.(.+)$")


def _numbered_globally(original: Callable[..., Any]) -> Callable[..., Any]:
    def _megatron_local_name_to_global(models: Any, config: Any, param_name: str, vp_stage: Any = None) -> str:
        from megatron.core import parallel_state

        name: str = original(models, config, param_name, vp_stage)
        if _OWN_EXPERT.search(name) is None or ".adapter." in name:
            return name
        first = parallel_state.get_expert_model_parallel_rank() * (
            config.num_moe_experts // parallel_state.get_expert_model_parallel_world_size()
        )
        return _OWN_EXPERT.sub(lambda found: f".local_experts.{first + int(found[1])}.{found[2]}", name)

    return _megatron_local_name_to_global


def _found_by_number(original: Callable[..., Any]) -> Callable[..., Any]:
    def gather_from_ep_ranks(self: Any, *args: Any, **kwargs: Any) -> Any:
        own = self.megatron_param
        self.megatron_param = _OWN_EXPERT.sub(r".\2\1", own)  # as the grouped experts are named: linear_fc1.weight3
        try:
            return original(self, *args, **kwargs)
        finally:
            self.megatron_param = own

    return gather_from_ep_ranks


PATCHES = (
    Patch(
        name="cpu-megatron-bridge-local-layers",
        target="megatron.bridge.models.gpt_provider:transformer_engine_layer_spec",
        kind="replace",
        distribution=DISTRIBUTION,
        versions=RELEASES,
        process="trainer rank",
        reason="The layers of every GPT model are TransformerEngine's, unless the provider is given others, which no "
        "configuration file can do. The bridge has a specification of megatron-core's own layers, and knows "
        "their names in Hugging Face's checkpoints.",
        upstream="no setting chooses local_layer_spec; not reported",
        remove_when="transformer_impl=local is enough",
        make=_local,
        fingerprint="7c731a4f475ae329",
    ),
    Patch(
        name="cpu-megatron-bridge-contiguous-splits",
        target="megatron.bridge.models.conversion.param_mapping:MegatronParamMapping.scatter_to_tp_ranks",
        kind="wrap",
        distribution=DISTRIBUTION,
        versions=RELEASES,
        process="trainer rank",
        reason="gloo reads a part that is not contiguous as if it were: row-parallel weights arrive as others, without "
        "an error.",
        upstream="torch.distributed.scatter over gloo does not check; not reported",
        remove_when="gloo refuses, or copies, parts that are not contiguous",
        make=_contiguous,
        parameters=("self", "splits"),
    ),
    Patch(
        name="cpu-megatron-bridge-expert-numbers",
        target="megatron.bridge.models.conversion.model_bridge:_megatron_local_name_to_global",
        kind="wrap",
        distribution=DISTRIBUTION,
        versions=RELEASES,
        process="trainer rank",
        reason="Experts that are not grouped, which is what there is without TransformerEngine, keep their local "
        "number: with expert parallelism every rank loads the experts of the first, without an error.",
        upstream="not reported",
        remove_when="_megatron_local_name_to_global knows local_experts",
        make=_numbered_globally,
        parameters=("models", "config", "param_name", "vp_stage"),
    ),
    Patch(
        name="cpu-megatron-bridge-expert-names",
        target="megatron.bridge.models.conversion.param_mapping:MegatronParamMapping.gather_from_ep_ranks",
        kind="wrap",
        distribution=DISTRIBUTION,
        versions=RELEASES,
        process="trainer rank",
        reason="Looks for the expert's number at the end of the name, where grouped experts have it: the export of "
        "experts that are not grouped ends in a ValueError.",
        upstream="not reported",
        remove_when="gather_from_ep_ranks knows local_experts",
        make=_found_by_number,
        parameters=("self",),
    ),
)
