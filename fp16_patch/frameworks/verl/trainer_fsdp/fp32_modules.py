# SPDX-License-Identifier: Apache-2.0
"""Keep named modules of verl's FSDP engines in FP32 compute: a router, a value head, an lm_head.

Such a module becomes an FSDP unit of its own with an FP32 policy: its weights are gathered and its gradients reduced
in FP32. Its inputs are cast to FP32, autocast is off inside, and its output stays FP32: the loss gets FP32 logits of
an lm_head and FP32 values of a value head. After a module in the middle, autocast runs every matrix product in half
precision again. The residual stream stays FP32 until something casts it. FSDP2 casts it at the next layer; under
FSDP1, where verl casts the model's inputs only, nothing does.

verl 0.9.1 gives every unit of a model the same policy (workers/engine/fsdp/transformer_impl.py:380,
utils/fsdp_utils.py:573), so two scoped patches make the units while verl makes its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from fnmatch import fnmatchcase
from typing import Any

from fp16_patch.engines.fsdp.precision import modules_in_fp32
from fp16_patch.errors import Fp16PatchError
from fp16_patch.fp32_modules import KEY, Fp32Module, compute_in_fp32, find_fp32_modules, format_names
from fp16_patch.frameworks.verl.releases import FSDP_RANK
from fp16_patch.patching import opened, scoped

HEADS = {"language_model": ("lm_head",), "value_model": ("score", "classifier", "v_head", "v_head.summary")}
"""verl's model type -> names of heads that models of the other type may lack: the setting is for the whole run."""


def for_critics_only(pattern: str) -> bool:
    """Return whether ``pattern`` names a value head. Without a critic no engine has it, so no engine refuses it."""
    actor, critic = (any(fnmatchcase(head, pattern) for head in heads) for heads in HEADS.values())
    return critic and not actor


def build_with_fp32_modules(build: Callable[[Any, Any], Any], engine: Any, module: Any, patterns: Sequence[str]) -> Any:
    """Return ``build(engine, module)`` with the modules that ``patterns`` name kept in FP32.

    Args:
        build: verl's ``FSDPEngine._build_fsdp_module``.
        engine: verl's FSDP engine.
        module: The model, not sharded yet.
        patterns: As in :func:`~fp16_patch.fp32_modules.find_fp32_modules`, which also says what is refused.

    Raises:
        Fp16PatchError: Before the model is sharded. Also refused are an lm_head under fused kernels, which use its
            weight and never call it, and modules with flash attention, which has no FP32.
    """
    other_heads = [head for kind, heads in HEADS.items() if kind != engine.model_config.model_type for head in heads]
    fp32_modules = find_fp32_modules(module, patterns, other_heads) if patterns else []
    if not fp32_modules:
        return build(engine, module)
    _refuse_what_cannot_work(engine, module, fp32_modules)
    from verl.utils.device import get_device_name

    tops = {fp32_module.module for fp32_module in fp32_modules}
    inside = {part for top in tops for part in top.modules()}
    with opened(wrap_in_fp32 if engine.engine_config.strategy == "fsdp" else shard_in_fp32, tops, inside):
        wrapped = build(engine, module)
    for fp32_module in fp32_modules:
        compute_in_fp32(fp32_module, get_device_name())
    if missing := {fp32_module.name for fp32_module in fp32_modules} - set(modules_in_fp32(wrapped)):
        raise Fp16PatchError(
            f"{KEY}: verl built a model in which {format_names(sorted(missing))} would not compute in FP32",
            code="wrong-dtype-built",
            next_step="report this with your command, or remove the setting",
        )
    return wrapped


def _refuse_what_cannot_work(engine: Any, module: Any, fp32_modules: list[Fp32Module]) -> None:
    attention = getattr(getattr(module, "config", None), "_attn_implementation", None)
    for fp32_module in fp32_modules:
        if engine.model_config.use_fused_kernels and fp32_module.name.rpartition(".")[2] == "lm_head":
            raise Fp16PatchError(
                f"{KEY}: verl's fused kernels use the weight of {fp32_module.name} and never call it",
                code="fp32-modules-refused",
                allowed=f"{fp32_module.name} in FP32, or fused kernels",
                next_step="set actor_rollout_ref.model.use_fused_kernels=False",
            )
        inner = [type(part).__name__ for part in fp32_module.module.modules()]
        if "flash" in str(attention) and any(name.endswith("Attention") for name in inner):
            raise Fp16PatchError(
                f"{KEY}: {fp32_module.name} contains attention, and {attention} computes in half precision only",
                code="fp32-modules-refused",
                allowed="modules without attention, or attn_implementation sdpa",
                next_step="name a smaller module, or set "
                "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
            )


@scoped(
    "verl.utils.fsdp_utils:fully_shard",
    name="verl-fsdp2-fp32-units",
    **FSDP_RANK,
    required=False,
    reason="verl gives every FSDP2 unit of a model one policy; shards modules of fp16_patch.fp32_modules in FP32, "
    "while verl wraps the model",
    upstream="verl utils/fsdp_utils.py:573",
    remove_when="verl takes a policy for each module",
)
def shard_in_fp32(original: Callable[..., Any], tops: Set[Any], inside: Set[Any]) -> Callable[..., Any]:
    """Shard the FP32 modules of a unit before the unit itself, and everything in them in FP32.

    ``tops`` are the modules to keep in FP32, ``inside`` those and all modules in them.
    """
    import torch
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

    policy = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32)

    def fully_shard(unit: Any, **settings: Any) -> Any:
        for part in unit.modules():  # the unit takes all parameters that are in no unit yet
            if part in tops and not isinstance(part, FSDPModule):
                original(part, **settings | {"mp_policy": policy})
        if unit in tops:
            return unit
        return original(unit, **settings | ({"mp_policy": policy} if unit in inside else {}))

    return fully_shard


@scoped(
    "verl.workers.engine.fsdp.transformer_impl:get_fsdp_wrap_policy",
    name="verl-fsdp1-fp32-units",
    **FSDP_RANK,
    required=False,
    reason="verl gives every FSDP1 unit of a model one policy; makes units of the modules of fp16_patch.fp32_modules, "
    "while verl wraps the model",
    upstream="verl workers/engine/fsdp/transformer_impl.py:380",
    remove_when="verl takes a policy for each module",
)
def wrap_in_fp32(original: Callable[..., Any], tops: Set[Any], inside: Set[Any]) -> Callable[..., Any]:
    """Make verl's wrap policy pick the FP32 modules as well. Have FSDP1 wrap everything in them in FP32."""
    import torch
    from torch.distributed.fsdp import MixedPrecision

    policy = MixedPrecision(param_dtype=torch.float32, reduce_dtype=torch.float32, buffer_dtype=torch.float32)

    def get_fsdp_wrap_policy(*args: Any, **kwargs: Any) -> Callable[..., bool]:
        by_verl = original(*args, **kwargs)
        for part in inside:
            part._wrap_overrides = {"mixed_precision": policy}  # torch reads it when it wraps (fsdp/wrap.py, _wrap)

        def wrap(module: Any, recurse: bool, nonwrapped_numel: int) -> bool:
            if module in tops or (recurse and not tops.isdisjoint(module.modules())):
                return True
            return by_verl is not None and by_verl(module=module, recurse=recurse, nonwrapped_numel=nonwrapped_numel)

        return wrap

    return get_fsdp_wrap_policy
