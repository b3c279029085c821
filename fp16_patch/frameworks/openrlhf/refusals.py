# SPDX-License-Identifier: Apache-2.0
"""Refuse, before any actor starts, the arguments of OpenRLHF that the flag cannot honour.

``config.ARGUMENTS`` lists those that FP16 training allows only some values of. The other refusals are here. Each names
the place in OpenRLHF 0.11.2 or DeepSpeed 0.19.6 that makes it necessary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fp16_patch.engines.vllm.fp16_risks import describe_wrong_function
from fp16_patch.engines.vllm.fp16_support import float16_refusing_model_types, model_type_of
from fp16_patch.errors import Fp16PatchError
from fp16_patch.frameworks.openrlhf.config import ARGUMENTS, asks_for_log_probs, overwrites
from fp16_patch.frameworks.openrlhf.rollout_trace import EAGER
from fp16_patch.precision import OVERWRITE_STEP, Precision, is_dtype
from fp16_patch.rollout_health.sampling_settings import CUT, LOWEST_TEMPERATURE, TOO_COLD, SamplingSetting, judge

Args = Any  # OpenRLHF's arguments, nested as its utils/config.py nests them


def unsupported(args: Args, precision: Precision) -> list[Fp16PatchError]:
    """Return an error for every argument of this run that the flag cannot honour."""
    found = [
        *_rollout(args, precision),
        *_our_settings(args, precision),
        *judge(_sampling(args), precision, asks_for_log_probs(args))[0],
    ]
    return [*found, *_fp16_training(args, precision)] if precision.train_dtype == "fp16" else found


def accepted_sampling(args: Args, precision: Precision) -> list[dict[str, Any]]:
    """Return the sampling settings that change mu and are accepted, as the precision report lists them."""
    return judge(_sampling(args), precision, asks_for_log_probs(args))[1]


def _sampling(args: Args) -> Iterator[SamplingSetting]:
    """Yield the arguments that change what vLLM samples from.

    Another temperature does not: OpenRLHF always asks for processed log-probs (cli/train_ppo_ray.py:78), and the
    trainer divides by the same temperature (models/actor.py:270).
    """
    top_p, temperature = args.rollout.top_p, args.rollout.temperature
    if top_p != 1:
        yield SamplingSetting("--rollout.top_p", top_p, CUT, "1", "set --rollout.top_p 1")
    if temperature < LOWEST_TEMPERATURE:
        key = "--rollout.temperature"
        yield SamplingSetting(key, temperature, TOO_COLD, "0.01 or more", f"set {key} 1")


def _rollout(args: Args, precision: Precision) -> Iterator[Fp16PatchError]:
    if not args.vllm.num_engines:
        why = "without vLLM there is no rollout engine to run in another precision"
        yield _refusal("--vllm.num_engines", args.vllm.num_engines, why, "1 or more", "set --vllm.num_engines")
    if args.ds.lora.rank > 0:
        why = (
            "the weight sync sends LoRA names that vLLM does not know and never the merged weights "
            "(trainer/ray/ppo_actor.py:478), in any precision"
        )
        yield _refusal("--ds.lora.rank", args.ds.lora.rank, why, "0", "train all weights, or use verl's LoRA")
    if precision.rollout_dtype == "fp16":
        model, refused = args.actor.model_name_or_path, float16_refusing_model_types()
        types = [name for name in model_type_of(str(model)) if name in refused]
        reasons = [f"vLLM refuses float16 for model type {name!r}: {refused[name]}" for name in types]
        for why in reasons or filter(None, [describe_wrong_function(str(model))]):
            allowed, next_step = "a model that vLLM runs in float16", "use --ds.param_dtype bf16"
            yield _refusal("--actor.model_name_or_path", model, why, allowed, next_step)


def _fp16_training(args: Args, precision: Precision) -> Iterator[Fp16PatchError]:
    in_bf16 = "or train in BF16: --ds.param_dtype bf16"
    for argument in ARGUMENTS:
        if overwrites(argument, args, precision):
            continue
        if (value := argument.value(args)) not in argument.allowed:
            advised = argument.allowed[0]
            allowed = " or ".join(str(choice) for choice in argument.allowed if choice is not None)
            next_step = f"set --{argument.key} {advised}" if advised else "remove it"
            if is_dtype(argument.set_to) and is_dtype(value):
                next_step += f", or {OVERWRITE_STEP}"
            yield _refusal(f"--{argument.key}", value, argument.why, allowed, f"{next_step}, {in_bf16}")
    if args.ds.adam_offload and args.ds.zero_stage == 2:
        # Micro-batches of an update on one rank, as OpenRLHF counts (utils/deepspeed/deepspeed.py, setup_distributed).
        ranks = args.actor.num_nodes * args.actor.num_gpus_per_node
        micro_batches = args.train.batch_size * args.ds.ring_attn_size // args.train.micro_batch_size // ranks
        if micro_batches > 1 or args.train.dynamic_batch_enable:
            why = "stage 2 accumulates the micro-batches of an update in FP16 on the CPU"
            yield _refusal("--ds.adam_offload", True, why, "stage 3, or one micro-batch", "set --ds.zero_stage 3")


def _our_settings(args: Args, precision: Precision) -> Iterator[Fp16PatchError]:
    if modules := list(precision.fp32_modules):
        why = "DeepSpeed casts the whole model to half precision"
        yield _refusal("fp16_patch.fp32_modules", modules, why, "unset", "remove it; on verl's FSDP engines it works")
    if precision.trace_rollout is not None and not args.vllm.enforce_eager:
        why = "module hooks do not fire in vLLM's compiled model and CUDA graphs"
        next_step = f"set {EAGER} for this run, or remove fp16_patch.trace_rollout"
        yield _refusal(EAGER, False, why, "set, with fp16_patch.trace_rollout", next_step)
    if precision.trace_rollout is not None and args.train.partial_rollout_enable:
        key, why = "--train.partial_rollout_enable", "vLLM samples other answers while the trace runs"
        next_step = "remove it for this run, or remove fp16_patch.trace_rollout"
        yield _refusal(key, True, why, "unset, with fp16_patch.trace_rollout", next_step)
    needing = ["fp16_patch.keep_log_probs"] if precision.keep_log_probs else []
    needing += ["fp16_patch.rollout_overflow=mask"] if precision.rollout_overflow == "mask" else []
    if needing and not asks_for_log_probs(args):
        key = "--algo.advantage.is_correction_level"
        need = "needs" if len(needing) == 1 else "need"
        why = f"OpenRLHF then does not ask vLLM for log-probs, which {' and '.join(needing)} {need}"
        next_step = f"set {key} token; with the threshold 1 1 it corrects nothing"
        yield _refusal(key, "off", why, "token, seq", next_step)


def _refusal(key: str, value: object, why: str, allowed: str, next_step: str) -> Fp16PatchError:
    return Fp16PatchError(f"{key} {value}: {why}", code="setting-refused", allowed=allowed, next_step=next_step)
