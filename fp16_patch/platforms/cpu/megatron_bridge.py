# SPDX-License-Identifier: Apache-2.0
"""megatron-bridge: layers of megatron-core's own, and weights that gloo can scatter."""

from __future__ import annotations

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
)
