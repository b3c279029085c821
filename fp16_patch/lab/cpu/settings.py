# SPDX-License-Identifier: Apache-2.0
"""What a run on this platform needs set, as data: the environment, and verl's overrides or OpenRLHF's arguments.

Nothing here depends on the precision, the model or the algorithm. What comes after these wins.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from fp16_patch import envs

KV_CACHE_BYTES = 256 * 2**20
"""Per vLLM server: more than 100,000 tokens of a model of 4 layers with 4 key-value heads of 32."""

OBJECT_STORE_BYTES = 512 * 2**20
"""Ray would take 30% of the machine's memory."""

WEIGHT_BUCKET_MB = 64
"""verl's 2048 is a buffer in shared memory here. The largest tensor must fit, in FP32."""


def environment(work_dir: Path, *, megatron: bool = False) -> dict[str, str]:
    """What to add to the environment of ``python -m verl.trainer.main_ppo``; Ray hands it to every process.

    ``megatron`` for ``model_engine=megatron``. Runs with different ``work_dir`` share nothing and may go on at the
    same time.
    """
    modules = ["fp16_patch.lab.cpu.verl", *(["fp16_patch.lab.cpu.megatron"] if megatron else [])]
    return {
        **_of_any_run(work_dir),
        **(_NOTHING_COMPILED if megatron else {}),
        "VERL_PLATFORM": "cpu",
        "VERL_USE_EXTERNAL_MODULES": ",".join(modules),
        # TransferQueue warns at every transfer that there are fewer cores than the 8 threads it would like.
        "TQ_NUM_THREADS": "1",
    }


def openrlhf_environment(work_dir: Path, ranks: int) -> dict[str, str]:
    """What to add to the environment of ``openrlhf.cli.train_ppo_ray`` with ``ranks`` ranks a model.

    Whoever starts its processes must call ``fp16_patch.platforms.activate`` in each of them.
    """
    # One each for policy, reference, critic, reward model and vLLM; CPUs also for the trainer and what it starts.
    devices = 5 * ranks
    return {
        **_of_any_run(work_dir),
        envs.PLATFORM: "cpu",
        # OpenRLHF calls ray.init with nothing. Logical devices, and no worker before somebody asks for one.
        "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": devices + 1, "GPU": devices}),
        "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(OBJECT_STORE_BYTES),
        "RAY_prestart_worker_first_driver": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB, the least there is; --vllm.gpu_memory_utilization would count otherwise
        "OMP_NUM_THREADS": "1",
        **_NOTHING_COMPILED,
    }


def openrlhf_arguments(ranks: int) -> list[str]:
    """Arguments for ``ranks`` ranks of each model that a run has, and one vLLM engine."""
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
    # No fused kernels, which Apex and TransformerEngine have, and the bridge's models ask for.
    "attention_backend": "local",
    "persist_layer_norm": False,
    "masked_softmax_fusion": False,
    "bias_activation_fusion": False,
    "bias_dropout_fusion": False,
    "apply_rope_fusion": False,
    "gradient_accumulation_fusion": False,
    "moe_grouped_gemm": False,
    "moe_permute_fusion": False,
    # Frees what is being sent to the next stage. NCCL sends in the order of its stream; gloo reads the memory when the
    # other side asks. With virtual stages, where Megatron waits for a send only after the next, it sent what lay there.
    "deallocate_pipeline_outputs": False,
}
"""``override_transformer_config`` of a Megatron engine."""


def _of_any_run(work_dir: Path) -> dict[str, str]:
    # Ray's socket paths must stay under 108 bytes, so its files cannot live under any work_dir.
    run = hashlib.sha256(str(work_dir.resolve()).encode()).hexdigest()[:8]
    return {
        "RAY_TMPDIR": str(Path(tempfile.gettempdir()) / f"fp16_patch-{run}"),
        # vLLM would bind every server of the machine to the same cores.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def verl_overrides(ranks: int, *, megatron: bool = False) -> list[str]:
    """Hydra overrides for ``ranks`` trainer ranks, one process each, and as many vLLM servers.

    ``megatron`` for ``model_engine=megatron``, which is not among them.
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
        # As many ranks as asked for, whatever the machine has; CPUs are Ray's unit of account, not cores.
        f"trainer.n_gpus_per_node={ranks}",
        "trainer.nnodes=1",
        f"++ray_kwargs.ray_init.num_gpus={ranks}",
        f"ray_kwargs.ray_init.num_cpus={8 + 4 * ranks}",
        "++ray_kwargs.ray_init.address=local",
        "++ray_kwargs.ray_init.include_dashboard=False",
        # As few processes as verl lets one have: each spends seconds on imports.
        "actor_rollout_ref.rollout.agent.num_workers=1",
        "reward.num_workers=1",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
        "data.dataloader_num_workers=0",
    ]


_MODELS = ("actor_rollout_ref.model", "critic.model")
_NOTHING_COMPILED = {
    # Megatron's fused functions and OpenRLHF's compute_entropy are, at their first call, and there may be no compiler.
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
