# SPDX-License-Identifier: Apache-2.0
"""Know the models whose FP16 vLLM treats in a way of its own, and those that are known to overflow.

Each entry of the tables names a file of ``vllm/model_executor/models`` and a text in it. A test holds both against the
installed vLLM, and finds new files with such a text. vLLM's own list of refused types is in ``fp16_support.py``.
"""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass, replace
from typing import Any

from fp16_patch.engines.vllm.fp16_support import model_types_in, read_model_config, vllm_source
from fp16_patch.precision import Precision

FACTORS = ("routed_scaling_factor", "moe_routed_scaling_factor")
"""What configurations call the factor on the output of routed experts."""

BF16_INSTEAD = "if updates are skipped or rollouts overflow, use BF16 for this model"
KEEP_IN_FP32 = "set fp16_patch.fp32_modules={modules} (verl with FSDP), or use BF16 for this model"


@dataclass(frozen=True)
class Fp16Risk:
    """One kind of model."""

    file: str
    """vLLM's, under ``model_executor/models``, without ``.py``."""
    text: str
    """What that file says where it treats FP16 in its own way; empty if it does not."""
    model_types: tuple[str, ...]
    """Types in ``config.json``, besides the architectures that vLLM's registry maps to ``file``."""
    module: str
    """Where the overflow begins; ``{last}`` is the last vision block."""
    why: str
    next_step: str
    source: str
    scaled: bool = False
    """Whether it concerns only models whose factor on routed experts is not 1."""

    def with_last_block(self, number: str) -> Fp16Risk:
        """Return the risk with the number of the last vision block in its texts."""
        fill = {name: getattr(self, name).replace("{last}", number) for name in ("module", "next_step")}
        return replace(self, **fill)


SCALED_DOWN = (
    "vLLM divides the residual stream by routed_scaling_factor in FP16, and the trainer does not: its stream is that "
    "much larger"
)
CLAMPED = "vLLM clamps the output of this module below FP16's limit, and the trainer does not"

GUARDED = (
    Fp16Risk(
        "qwen2_5_vl",
        "float16 will overflow at last block",
        ("qwen2_5_vl", "qwen2_5_omni", "qwen2_5_omni_thinker"),
        "visual.blocks.{last}",
        CLAMPED,
        KEEP_IN_FP32.format(modules='["*visual.blocks.{last}.mlp"]'),
        "vllm/model_executor/models/qwen2_5_vl.py, Qwen2_5_VisionTransformer.forward",
    ),
    Fp16Risk(
        "deepseek_v2",
        "Fix FP16 overflow",
        ("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2", "kimi_vl", "kimi_k25"),
        "model.layers",
        SCALED_DOWN,
        BF16_INSTEAD,
        "https://github.com/vllm-project/vllm/pull/13232",
        scaled=True,
    ),
    Fp16Risk(
        "AXK1",
        "Fix FP16 overflow",
        ("axk1", "AXK1"),
        "model.layers",
        SCALED_DOWN,
        BF16_INSTEAD,
        "vllm/model_executor/models/AXK1.py, AXK1DecoderLayer.forward",
        scaled=True,
    ),
    Fp16Risk(
        "openpangu",
        "Fix FP16 overflow",
        ("pangu_ultra_moe", "PanguProMoE"),
        "model.layers",
        SCALED_DOWN,
        BF16_INSTEAD,
        "https://github.com/vllm-project/vllm/pull/27521",
        scaled=True,
    ),
    Fp16Risk(
        "minicpmo",
        "cast_overflow_tensors(hidden_states)",
        ("minicpmo",),
        "apm.layers",
        CLAMPED,
        KEEP_IN_FP32.format(modules='["*apm.layers.*.fc2"]'),
        "vllm/model_executor/models/minicpmo.py, MiniCPMWhisperEncoderLayer.forward",
    ),
)
"""vLLM guards these against overflow in FP16; Transformers and Megatron do not."""

GUARDED_BY_BOTH = {
    "whisper": ("cast_overflow_tensors(hidden_states)", "whisper/modeling_whisper.py"),
    "qwen3_omni_moe_thinker": ("Clamp for numerical stability with fp16", "qwen3_omni_moe/modeling_qwen3_omni_moe.py"),
}
"""vLLM's file -> its text, and the file of ``transformers/models`` that clamps at the same value."""

UNGUARDED = (
    Fp16Risk(
        "gemma3n",
        "",
        ("gemma3n", "gemma3n_text"),
        "language_model.layers",
        "activations of this family exceed FP16's limit, as those of Gemma 3, which vLLM refuses",
        BF16_INSTEAD,
        "https://github.com/unslothai/unsloth/pull/5055",
    ),
    Fp16Risk(
        "gemma4",
        "",
        ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"),
        "language_model.layers.0.mlp.down_proj and the last step of vision_tower",
        "both are known to exceed FP16's limit",
        BF16_INSTEAD,
        "https://github.com/unslothai/unsloth-zoo/pull/600 and https://github.com/vllm-project/vllm/issues/40290",
    ),
)
"""Known to overflow, neither guarded nor refused by vLLM."""

NOT_COMPENSATED = {
    "glm4_moe": ("glm4_moe", "glm4v_moe", "glm4v_moe_text"),
    "nemotron_h": ("nemotron_h", "nemotron_h_omni"),
    "laguna": ("laguna",),
    "bailing_moe_linear": ("bailing_hybrid", "bailing_moe_linear"),
}
"""vLLM's file -> model types. In FP16 vLLM's MoE layers divide the output of shared experts by the factor on the routed
ones, and leave that factor out (``fused_moe/runner/moe_runner.py``, ``_maybe_apply_routed_scale_to_output``). This is
for decoder layers that divide everything else too. Those of these files do not.
"""

TOO_SMALL = (
    "in FP16 vLLM leaves out this model's factor on routed experts, {factor:g}: the output of each MoE layer is too "
    "small by it (vllm/model_executor/models/{file}.py makes up for it nowhere)"
)


def find_risks(model: str, *, trained: bool, served: bool) -> list[Fp16Risk]:
    """Return the risks of a model, with the number of the last vision block filled in.

    Args:
        model: A local model folder or a hub id.
        trained: Whether the run trains it in FP16.
        served: Whether vLLM runs it in FP16.
    """
    config = read_model_config(model)
    factor, last = _factor(config), _last_vision_block(config)
    candidates = (*(GUARDED if trained else ()), *(UNGUARDED if trained or served else ()))
    found = [risk for risk in candidates if _concerns(config, risk.file, risk.model_types)]
    return [risk.with_last_block(last) for risk in found if not (risk.scaled and factor == 1)]


def warnings(key: str, model: str, precision: Precision, *, trained: bool = True) -> list[str]:
    """Return the text of a warning for each risk of the model that the user has set at ``key``.

    Args:
        key: The setting, for the text.
        model: A local model folder or a hub id.
        precision: The run's.
        trained: Whether the run trains this model; vLLM serves it in any case.
    """
    trains, serves = trained and precision.train_dtype == "fp16", precision.rollout_dtype == "fp16"
    return [
        f"{key}={model}: {risk.module} may overflow in FP16: {risk.why} ({risk.source}); next step: {risk.next_step}"
        for risk in find_risks(model, trained=trains, served=serves)
    ]


def describe_wrong_function(model: str) -> str | None:
    """Return why vLLM computes another function than the model's in FP16, or None."""
    config = read_model_config(model)
    factor = _factor(config)
    for file, model_types in NOT_COMPENSATED.items():
        if factor not in (None, 1) and _concerns(config, file, model_types):
            return TOO_SMALL.format(factor=factor, file=file)
    return None


def _concerns(config: dict[str, Any], file: str, model_types: tuple[str, ...]) -> bool:
    files = {_file_of_architecture().get(name) for name in config.get("architectures") or ()}
    return file in files or not set(model_types).isdisjoint(model_types_in(config))


def _factor(config: dict[str, Any]) -> float | None:
    """Return the factor on the output of routed experts; None if the configuration leaves it to a default."""
    parts = (config, config.get("text_config") or {})
    found = [part[name] for part in parts for name in FACTORS if isinstance(part.get(name), int | float)]
    return float(found[0]) if found else None


def _last_vision_block(config: dict[str, Any]) -> str:
    outer = config.get("thinker_config") or config
    depth = (outer.get("vision_config") or {}).get("depth")
    return str(depth - 1) if isinstance(depth, int) else "31"  # that of every published Qwen2.5-VL


@functools.cache
def _file_of_architecture() -> dict[str, str]:
    """Return vLLM's registry: the name in a model's ``architectures`` -> the file that implements it."""
    found = {}
    for node in ast.walk(ast.parse(vllm_source("model_executor", "models", "registry.py") or "")):
        for key, value in zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ():
            file = value.elts[0] if isinstance(value, ast.Tuple) and value.elts else None
            if isinstance(key, ast.Constant) and isinstance(file, ast.Constant):
                found[str(key.value)] = str(file.value)
    return found
