# SPDX-License-Identifier: Apache-2.0
"""Keep named modules of verl's FSDP engines in FP32 compute: a router, a value head, an lm_head.

Such a module becomes an FSDP unit of its own whose policy is FP32: its weights are gathered and its gradients
reduced in FP32. Its inputs are cast to FP32, autocast is off inside, and its output stays FP32: logits of an lm_head
and values of a value head arrive at the loss so. After a module in the middle, autocast takes every matrix product
back to half precision; the sum of the residual stream is FP32 until something casts it, which under FSDP2 is the
next layer's entrance, and under FSDP1, where verl casts the model's inputs only, nothing.

verl 0.9.1 gives every unit of a model the same policy (workers/engine/fsdp/transformer_impl.py:380,
utils/fsdp_utils.py:573), so the units are made where verl makes its own, during that call and no longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

from fp16_patch.engines.fsdp.precision import modules_in_fp32
from fp16_patch.errors import Fp16PatchError
from fp16_patch.fp32_modules import KEY, Fp32Module, compute_in_fp32, find_fp32_modules, format_names

HEADS = {"language_model": ("lm_head",), "value_model": ("score", "classifier", "v_head", "v_head.summary")}
"""verl's model type -> names of heads that models of the other type need not have: the setting is for the whole run."""


def for_critics_only(pattern: str) -> bool:
    """Whether ``pattern`` names a value head: without a critic, no engine would have it and none would refuse it."""
    actor, critic = (any(fnmatchcase(head, pattern) for head in heads) for heads in HEADS.values())
    return critic and not actor


def build_with_fp32_modules(build: Callable[[Any, Any], Any], engine: Any, module: Any, patterns: Sequence[str]) -> Any:
    """``build(engine, module)``, verl's ``FSDPEngine._build_fsdp_module``, with the modules named kept in FP32.

    ``patterns`` are as in :func:`~fp16_patch.fp32_modules.find_fp32_modules`, which also says what is refused;
    besides, an lm_head under fused kernels (its weight is used and it is never called), and flash attention
    inside (it has no FP32). Raises :class:`Fp16PatchError` before the model is sharded.
    """
    if not patterns:
        return build(engine, module)
    model_type = engine.model_config.model_type
    elsewhere = [head for other, heads in HEADS.items() if other != model_type for head in heads]
    fp32_modules = find_fp32_modules(module, patterns, elsewhere)
    if not fp32_modules:
        return build(engine, module)
    _refuse_what_cannot_work(engine, module, fp32_modules)
    from verl.utils.device import get_device_name

    with (_units_of_fsdp1 if engine.engine_config.strategy == "fsdp" else _units_of_fsdp2)(fp32_modules):
        wrapped = build(engine, module)
    for fp32_module in fp32_modules:
        compute_in_fp32(fp32_module, get_device_name())
    if missing := {fp32_module.name for fp32_module in fp32_modules} - set(modules_in_fp32(wrapped)):
        raise Fp16PatchError(
            f"{KEY}: verl built a model in which {format_names(sorted(missing))} would not compute in FP32",
            code="wrong-dtype-built",
            next_step="report this with your command; without the setting the run can go on",
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


@contextmanager
def _units_of_fsdp2(fp32_modules: list[Fp32Module]) -> Iterator[None]:
    """While open, verl's ``fully_shard`` shards the FP32 modules of a unit first, and everything in them in FP32."""
    import torch
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
    from verl.utils import fsdp_utils

    stock = fsdp_utils.fully_shard
    policy = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32)
    tops = {fp32_module.module for fp32_module in fp32_modules}
    inside = {part for top in tops for part in top.modules()}

    def fully_shard(unit: Any, **settings: Any) -> Any:
        for part in unit.modules():  # the unit takes all parameters that are in no unit yet
            if part in tops and not isinstance(part, FSDPModule):
                stock(part, **settings | {"mp_policy": policy})
        if unit in tops:
            return unit
        return stock(unit, **settings | ({"mp_policy": policy} if unit in inside else {}))

    fsdp_utils.fully_shard = fully_shard
    try:
        yield
    finally:
        fsdp_utils.fully_shard = stock


@contextmanager
def _units_of_fsdp1(fp32_modules: list[Fp32Module]) -> Iterator[None]:
    """While open, verl's wrap policy also picks the FP32 modules, and FSDP wraps everything in them in FP32."""
    import torch
    from torch.distributed.fsdp import MixedPrecision
    from verl.workers.engine.fsdp import transformer_impl

    stock = transformer_impl.get_fsdp_wrap_policy
    policy = MixedPrecision(param_dtype=torch.float32, reduce_dtype=torch.float32, buffer_dtype=torch.float32)
    tops = {fp32_module.module for fp32_module in fp32_modules}
    inside = {part for top in tops for part in top.modules()}

    def get_fsdp_wrap_policy(*args: Any, **kwargs: Any) -> Callable[..., bool]:
        by_verl = stock(*args, **kwargs)

        def wrap(module: Any, recurse: bool, nonwrapped_numel: int) -> bool:
            if module in tops or (recurse and not tops.isdisjoint(module.modules())):
                return True
            return by_verl is not None and by_verl(module=module, recurse=recurse, nonwrapped_numel=nonwrapped_numel)

        return wrap

    transformer_impl.get_fsdp_wrap_policy = get_fsdp_wrap_policy
    for part in inside:
        # torch's own way to give one module other settings than the rest (fsdp/wrap.py, _wrap).
        part._wrap_overrides = {"mixed_precision": policy}
    try:
        yield
    finally:
        transformer_impl.get_fsdp_wrap_policy = stock
        for part in inside:
            vars(part).pop("_wrap_overrides", None)
