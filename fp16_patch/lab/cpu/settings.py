# SPDX-License-Identifier: Apache-2.0
"""Settings of a run on this platform: the environment, and verl's overrides or OpenRLHF's arguments.

None of them depends on the precision, the model or the algorithm. Later settings override them.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from fp16_patch import envs

KV_CACHE_BYTES = 256 * 2**20
"""Per vLLM server: more than 100,000 tokens of a model with 4 layers and 4 key-value heads of 32."""

OBJECT_STORE_BYTES = 512 * 2**20
"""Ray's default is 30% of the machine's memory."""

WEIGHT_BUCKET_MB = 64
"""A buffer in shared memory; verl's default is 2048. The largest tensor must fit, in FP32."""


def environment(work_dir: Path, *, megatron: bool = False) -> dict[str, str]:
    """Return the variables to add to the environment of ``python -m verl.trainer.main_ppo``.

    Set ``megatron`` for ``model_engine=megatron``. Runs with different ``work_dir`` share nothing and may run at the
    same time.
    """
    modules = ["fp16_patch.lab.cpu.verl", *(["fp16_patch.lab.cpu.megatron"] if megatron else [])]
    return {
        **_common_environment(work_dir),
        **(_NO_COMPILER if megatron else {}),
        "VERL_PLATFORM": "cpu",
        "VERL_USE_EXTERNAL_MODULES": ",".join(modules),
        # TransferQueue warns at every transfer if there are fewer cores than its 8 threads.
        "TQ_NUM_THREADS": "1",
    }


def openrlhf_environment(work_dir: Path, ranks: int) -> dict[str, str]:
    """Return the variables to add to the environment of ``openrlhf.cli.train_ppo_ray`` with ``ranks`` ranks per model.

    The caller must call ``fp16_patch.platforms.activate`` in each of its processes.
    """
    # One each for policy, reference, critic, reward model and vLLM; one more CPU for the trainer.
    devices = 5 * ranks
    return {
        **_common_environment(work_dir),
        envs.PLATFORM: "cpu",
        # OpenRLHF calls ray.init without arguments. Logical devices, and no worker processes in advance.
        "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": devices + 1, "GPU": devices}),
        "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(OBJECT_STORE_BYTES),
        "RAY_prestart_worker_first_driver": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB, the minimum; otherwise --vllm.gpu_memory_utilization decides
        "OMP_NUM_THREADS": "1",
        **_NO_COMPILER,
    }


def openrlhf_arguments(ranks: int) -> list[str]:
    """Return OpenRLHF's arguments for ``ranks`` ranks of each model and one vLLM engine."""
    models = ("actor", "ref", "critic", "reward")
    return [
        *(f"--{model}.num_nodes=1" for model in models),
        *(f"--{model}.num_gpus_per_node={ranks}" for model in models),
        "--vllm.num_engines=1",
        "--vllm.tensor_parallel_size=1",
        "--vllm.enforce_eager",
        "--vllm.sync_backend=gloo",
        "--vllm.gpu_memory_utilization=0.1",
        "--ds.attn_implementation=sdpa",
    ]


MEGATRON_TRANSFORMER: dict[str, object] = {
    # No fused kernels: they are Apex's and TransformerEngine's, and the bridge's models enable them.
    "attention_backend": "local",
    "persist_layer_norm": False,
    "masked_softmax_fusion": False,
    "bias_activation_fusion": False,
    "bias_dropout_fusion": False,
    "apply_rope_fusion": False,
    "gradient_accumulation_fusion": False,
    "moe_grouped_gemm": False,
    "moe_permute_fusion": False,
    # It frees tensors that are being sent to the next stage. NCCL sends in stream order; gloo reads the memory when the
    # receiver asks. With virtual stages Megatron waits for a send only after the next one, and gloo sent freed memory.
    "deallocate_pipeline_outputs": False,
}
"""``override_transformer_config`` of a Megatron engine."""


def _common_environment(work_dir: Path) -> dict[str, str]:
    # Ray's socket paths must stay under 108 bytes, so its files cannot be in work_dir.
    run = hashlib.sha256(str(work_dir.resolve()).encode()).hexdigest()[:8]
    return {
        "RAY_TMPDIR": str(Path(tempfile.gettempdir()) / f"fp16_patch-{run}"),
        # By default vLLM binds every server of the machine to the same cores.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def verl_overrides(ranks: int, *, megatron: bool = False) -> list[str]:
    """Return Hydra overrides for ``ranks`` trainer ranks, one process each, and as many vLLM servers.

    Set ``megatron`` for ``model_engine=megatron``; the overrides do not set that key.
    """
    return [
        *(_MEGATRON if megatron else _FSDP),
        # No accelerator: the device, eager attention kernels, nothing compiled, nothing to put to sleep.
        "trainer.device=cpu",
        *(f"{model}.use_remove_padding=False" for model in _MODELS),
        *(f"++{model}.override_config.attn_implementation=sdpa" for model in _MODELS),
        "actor_rollout_ref.actor.use_torch_compile=False",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.rollout.enforce_eager=True",
        "actor_rollout_ref.rollout.free_cache_engine=False",
        "++actor_rollout_ref.rollout.enable_sleep_mode=False",
        "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
        # Memory.
        f"++actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes={KV_CACHE_BYTES}",
        f"actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes={WEIGHT_BUCKET_MB}",
        f"++ray_kwargs.ray_init.object_store_memory={OBJECT_STORE_BYTES}",
        # As many ranks as requested, whatever the machine has; Ray's CPUs are logical, not cores.
        f"trainer.n_gpus_per_node={ranks}",
        "trainer.nnodes=1",
        f"++ray_kwargs.ray_init.num_gpus={ranks}",
        f"ray_kwargs.ray_init.num_cpus={8 + 4 * ranks}",
        "++ray_kwargs.ray_init.address=local",
        "++ray_kwargs.ray_init.include_dashboard=False",
        # As few processes as verl allows: each spends seconds on imports.
        "actor_rollout_ref.rollout.agent.num_workers=1",
        "reward.num_workers=1",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
        "data.dataloader_num_workers=0",
    ]


_MODELS = ("actor_rollout_ref.model", "critic.model")
_NO_COMPILER = {
    # Megatron's fused functions and OpenRLHF's compute_entropy compile at their first call; there may be no compiler.
    "TORCHDYNAMO_DISABLE": "1",
}
_FSDP = [
    f"{engine}.use_torch_compile=False"
    for engine in ("actor_rollout_ref.actor.fsdp_config", "actor_rollout_ref.ref.fsdp_config", "critic.fsdp")
]
_MEGATRON = [
    *(
        f"{engine}.{setting}=False"
        for engine in ("actor_rollout_ref.actor.megatron", "actor_rollout_ref.ref.megatron", "critic.megatron")
        for setting in ("use_remove_padding", "sequence_parallel")
    ),
    *(  # the reference model takes the actor's
        f"++{engine}.override_transformer_config.{key}={value}"
        for engine in ("actor_rollout_ref.actor.megatron", "critic.megatron")
        for key, value in MEGATRON_TRANSFORMER.items()
    ),
]
