# SPDX-License-Identifier: Apache-2.0
"""The settings of verl's Megatron engines. Line numbers are those of verl 0.9.1 and megatron-core 0.16.

verl hands ``optim.override_optimizer_config`` to Megatron's OptimizerConfig last (``utils/megatron/optimizer.py``,
``init_megatron_optim_config``), so the settings of the loss scale go there. Megatron has no settings for the factors
and the largest scale: they are given to its scaler once it is built.
"""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from fp16_patch.engines.megatron import optimizer_choice
from fp16_patch.engines.megatron.config import SETTINGS
from fp16_patch.engines.vllm.fp16_support import read_model_config
from fp16_patch.frameworks.verl.config.setting import MISSING, SECTIONS, Setting, place_under, value_of
from fp16_patch.precision import Precision, long_name

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""What Hugging Face's configurations call the number of experts."""

STATES = ("main_params_dtype", "main_grads_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")
"""What an optimizer holds besides the model. verl's ``config/optim/megatron.yaml`` has most of them too."""

QAT = "quantization-aware training has its own dtypes"
ADAM_ONLY = "in FP16 only Megatron's Adam is tested; Muon and similar optimizers refuse FP16 themselves"
OWN_FSDP = "Megatron's own FSDP has its own gradient buffer and scaler"
RAISES = "it raises at the first overflow, before the update can be skipped (distributed_data_parallel_config.py)"
ONE_OPTIMIZER = "the model and its optimizer must both be sharded, otherwise ranks drift apart silently"
EXPORT = "verl's weight export breaks without it (utils/megatron_utils.py:827)"
ROUTER = "a router in FP16 sends tokens to other experts than the rollout's"
MODEL_DTYPE = "the flag sets the dtype of the model"
OPTIMIZER_DTYPE = "the flag sets it, or cannot check it"
CPU_OPTIMIZER = "no run on a GPU has shown yet that Megatron's optimizer on the CPU skips and resumes rightly in FP16"
OFFLOAD_INSTEAD = "remove it; megatron.optimizer_offload=True may stay"
STATE_DTYPE = "half precision loses small updates, or the gradients of micro-batches"
DEEP_EP = "DeepEP's combine takes BF16 only"
GROUPED_GEMM = "the legacy grouped GEMM asserts BF16 (megatron/core/transformer/moe/experts.py:225)"
FUSED_LOSS = "its backward casts the gradient of the MTP loss to BF16 (megatron/core/fusions/fused_cross_entropy.py:82)"
FUSED_ADAM = "it needs the FusedAdam of TransformerEngine, which is not installed"


def is_configured(config: DictConfig, role: str) -> bool:
    """Return whether the configuration has a Megatron engine for ``role``."""
    return isinstance(value_of(config, f"{SECTIONS[role]}.megatron"), DictConfig)


def settings(config: DictConfig, role: str, precision: Precision) -> list[Setting]:
    """Return the settings of one role, with keys relative to its section."""
    fp16, trains = precision.train_dtype == "fp16", role != "reference"
    rows = place_under("megatron", _engine(precision))
    if not _follows_another(config, role):
        rows += place_under("megatron.override_transformer_config", _model(config, role, precision))
    if trains:
        states = [Setting(name, allowed=("fp32", None), why=STATE_DTYPE) for name in STATES]
        rows += place_under("megatron.override_ddp_config", _gradients())
        rows += place_under("optim", states)
        rows += place_under("optim.override_optimizer_config", _dtype_switches(precision, OPTIMIZER_DTYPE))
        rows += place_under("optim.override_optimizer_config", states)
    if trains and fp16:
        rows.append(Setting("optim.optimizer", allowed=("adam",), why=ADAM_ONLY))
        rows.append(_fused_adam(f"optim.{optimizer_choice.KEY}"))
        rows += place_under("optim.override_optimizer_config", _optimizer(precision))
    return rows


def _follows_another(config: DictConfig, role: str) -> bool:
    """Return whether the model's overrides are an interpolation, as verl's reference has it to the actor's."""
    return bool(
        OmegaConf.is_interpolation(value_of(config, f"{SECTIONS[role]}.megatron"), "override_transformer_config")
    )


def _engine(precision: Precision) -> list[Setting]:
    return [
        Setting("dtype", sets=long_name(precision.train_dtype), stock=("bfloat16",)),
        Setting("vanilla_mbridge", allowed=(False,), why="the deprecated mbridge is untested, unlike Megatron-Bridge"),
        Setting("use_mbridge", allowed=(True,), why="exporting weights without Megatron-Bridge is untested"),
        Setting("use_megatron_fsdp", allowed=(False,), why=OWN_FSDP),
        Setting("use_distributed_optimizer", allowed=(True,), why=EXPORT),
        Setting("qat.enable", allowed=(False, None), why=QAT),
    ]


def _gradients() -> list[Setting]:
    return [
        Setting("use_megatron_fsdp", allowed=(False, None), why=OWN_FSDP),
        Setting("use_distributed_optimizer", allowed=(True, None), why=ONE_OPTIMIZER),
        Setting("check_for_nan_in_grad", allowed=(False, None), why=RAISES),
        Setting("check_for_large_grads", allowed=(False, None), why=RAISES),
        Setting("grad_reduce_in_fp32", allowed=(True, None), why="gradients of micro-batches would be summed in FP16"),
    ]


def _dtype_switches(precision: Precision, why: str) -> list[Setting]:
    """Return Megatron's two switches of a dtype. Each may say what the flag says."""
    switches = ("fp16", "bf16")
    return [Setting(name, allowed=(None, precision.train_dtype == name), why=why) for name in switches]


def _model(config: DictConfig, role: str, precision: Precision) -> list[Setting]:
    fp16 = precision.train_dtype == "fp16"
    router = fp16 and _has_experts(config)
    # Only the MTP loss is Megatron's own; verl computes the others from logits.
    mtp_loss = fp16 and role != "reference" and bool(value_of(config, "actor_rollout_ref.model.mtp.enable"))
    return [
        Setting("moe_router_dtype", sets="fp32", stock=(MISSING, None), why=ROUTER, when=router),
        Setting("moe_token_dispatcher_type", allowed=(None, "alltoall", "allgather"), why=DEEP_EP, when=fp16),
        Setting("moe_enable_deepep", allowed=(None, False), why=DEEP_EP, when=fp16),
        Setting("moe_use_legacy_grouped_gemm", allowed=(None, False), why=GROUPED_GEMM, when=fp16),
        Setting("cross_entropy_loss_fusion", sets=False, stock=(MISSING, None), why=FUSED_LOSS, when=mtp_loss),
        *_dtype_switches(precision, MODEL_DTYPE),
        Setting("fp8", allowed=(None, False), why=MODEL_DTYPE),
        Setting("fp4", allowed=(None,), why=MODEL_DTYPE),
        Setting("params_dtype", allowed=(None,), why=MODEL_DTYPE),
        Setting("pipeline_dtype", allowed=(None,), why=MODEL_DTYPE),
        Setting("autocast_dtype", allowed=(None,), why=MODEL_DTYPE),
    ]


def _optimizer(precision: Precision) -> list[Setting]:
    # With TransformerEngine the user may choose either Adam; without it only the plain one exists.
    aware = optimizer_choice.choose().precision_aware
    scaling = "the setting is fp16_patch.loss_scaling.{}, on every backend"
    return [
        *(
            Setting(theirs, sets=getattr(precision.loss_scaling, ours), stock=(MISSING,), why=scaling.format(ours))
            for theirs, ours in SETTINGS.items()
        ),
        Setting(optimizer_choice.KEY, sets=aware, stock=(MISSING, None), allowed=(True, False)),
        _fused_adam(optimizer_choice.KEY),
        Setting("optimizer", allowed=(None, "adam"), why=ADAM_ONLY),
        Setting("use_distributed_optimizer", allowed=(None, True), why=ONE_OPTIMIZER),
        Setting("loss_scale", allowed=(None,), why="a fixed loss scale turns dynamic loss scaling off"),
        Setting("params_dtype", allowed=(None,), why=OPTIMIZER_DTYPE),
        Setting("fp8_recipe", allowed=(None,), why=OPTIMIZER_DTYPE),
        Setting("optimizer_cpu_offload", allowed=(None, False), why=CPU_OPTIMIZER, next_step=OFFLOAD_INSTEAD),
    ]


def _fused_adam(key: str) -> Setting:
    absent = not optimizer_choice.choose().precision_aware
    install = "install transformer-engine on every node, or remove use_precision_aware_optimizer"
    return Setting(key, allowed=(False, None), why=FUSED_ADAM, next_step=install, when=absent)


def _has_experts(config: DictConfig) -> bool:
    folder = value_of(config, "actor_rollout_ref.model.path")
    described = read_model_config(str(folder)) if folder else {}
    return any(part.get(name) for part in (described, described.get("text_config") or {}) for name in EXPERTS)
