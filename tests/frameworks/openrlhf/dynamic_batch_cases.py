# SPDX-License-Identifier: Apache-2.0
"""OpenRLHF's own trainers with dynamic batches on two real ranks. Run as ``python dynamic_batch_cases.py FOLDER``."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from engine_ranks import Case, Result, run_all

from fp16_patch.frameworks.openrlhf import dynamic_batches, plan

plan.register_import_hooks()  # and the platform

import torch  # noqa: E402
from openrlhf.models import Actor, PolicyLoss, ValueLoss, get_llm_for_sequence_regression  # noqa: E402
from openrlhf.trainer.ppo_utils import NaiveReplayBuffer  # noqa: E402
from openrlhf.trainer.ppo_utils.experience import Experience  # noqa: E402
from openrlhf.trainer.ray.ppo_actor import ActorPPOTrainer  # noqa: E402
from openrlhf.trainer.ray.ppo_critic import CriticPPOTrainer  # noqa: E402
from openrlhf.utils.deepspeed import DeepspeedStrategy  # noqa: E402
from transformers import AutoModelForCausalLM, Qwen2Config  # noqa: E402

from fp16_patch.attached_state import attached  # noqa: E402
from fp16_patch.engines.deepspeed.step import get_loss_scaler  # noqa: E402
from fp16_patch.frameworks.openrlhf.trainer import _Updates, engine_of  # noqa: E402
from fp16_patch.loss_scaling import LossScaling  # noqa: E402
from fp16_patch.precision import Precision  # noqa: E402

LENGTHS = (
    ((6, 6, 6, 6), (9, 9, 9, 3)),  # answers of update 1 on rank 0 and rank 1: two micro-batches would do on rank 0
    ((3, 3, 3, 3), (3, 3, 3, 3)),
    ((12, 12, 12, 12), (5, 4, 3, 3)),
)
PACKED = 12
"""Tokens of a micro-batch: three, one and four micro-batches on both ranks, in rows of other lengths."""
WHOLE = 10**6
"""One micro-batch an update."""
SETTINGS = LossScaling(init_scale=2.0**8)
PROMPT, WORDS = 2, 32
CONFIG = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}


def answers(rank: int, spoilt: float | None) -> list[Any]:
    """Return the answers of all updates on this rank. ``spoilt`` is one advantage of rank 1's first micro-batches."""
    draw = torch.Generator().manual_seed(rank)
    made = []
    for length in (length for update in LENGTHS for length in update[rank]):
        numbers = torch.randn((4, length - 1), generator=draw)
        made.append(
            Experience(
                sequences=torch.randint(WORDS, (length,), generator=draw),
                attention_mask=torch.ones(length, dtype=torch.long),
                action_mask=torch.arange(length - 1) >= PROMPT - 1,
                action_log_probs=numbers[0] / 100 - 3.5,
                advantages=numbers[1],
                values=numbers[2] / 10,
                returns=numbers[3],
                total_length=torch.tensor(length),
            )
        )
    if spoilt is not None and rank == 1:
        made[0].advantages[-1] = made[0].returns[-1] = spoilt
    return made


def new_trainer(rank: int, role: str, stage: int, tokens: int, spoilt: float | None, folder: Path) -> Any:
    """Return OpenRLHF's own trainer, strategy and buffer on a model of one layer; the weights do not move."""
    args = SimpleNamespace(
        actor=SimpleNamespace(entropy_coef=None, aux_loss_coef=0.0),
        algo=SimpleNamespace(kl=SimpleNamespace(use_loss=False)),
        ds=SimpleNamespace(param_dtype="fp16", tensor_parallel_size=1, ring_attn_size=1, packing_samples=True),
        rollout=SimpleNamespace(batch_size=24, n_samples_per_prompt=1),
        train=SimpleNamespace(dynamic_batch_enable=True, batch_size=8, max_tokens_per_gpu=tokens),
        local_rank=-1,
    )
    strategy = DeepspeedStrategy(micro_train_batch_size=1, train_batch_size=8, zero_stage=stage, args=args)
    strategy.setup_distributed()
    strategy.get_ds_train_config = partial(_without_whole_parameters, strategy.get_ds_train_config)
    cls = ActorPPOTrainer if role == "actor" else CriticPPOTrainer
    trainer = object.__new__(cls)
    trainer.strategy, trainer.args = strategy, args
    trainer.max_epochs, trainer.dataloader_pin_memory, trainer.aux_loss, trainer.ema_model = 1, False, False, None
    trainer.replay_buffer = NaiveReplayBuffer(1, packing_samples=True, dynamic_batch=True)
    trainer.replay_buffer.items = answers(rank, spoilt)
    adam = {"lr": 0.0, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0}
    cfg = {"optim": "adam", "adam": adam, "lr_scheduler": "constant", "scheduler_steps": 9, "max_norm": 0.0}
    torch.manual_seed(0)
    if role == "actor":
        trainer.actor_loss_fn = PolicyLoss()
        model = Actor(AutoModelForCausalLM.from_pretrained(folder, attn_implementation="flash_attention_2"))
        model.packing_samples = True
    else:
        trainer.critic_loss_fn = ValueLoss()
        model = get_llm_for_sequence_regression(
            str(folder), "critic", packing_samples=True, init_value_head=True, param_dtype="fp16"
        )
    prepared = strategy.prepare((model, cfg))
    for name, made in zip(("", "_optim", "_scheduler"), prepared, strict=True):
        setattr(trainer, role + name, made)
    return trainer


def _without_whole_parameters(original: Any, *args: Any, **kwargs: Any) -> Any:
    config = original(*args, **kwargs)  # ZeRO-3 over gloo sometimes finds an inf where parameters are kept whole
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return config


def train(trainer: Any, role: str) -> Result:
    """Run OpenRLHF's ``ppo_train``; return each update, and how many micro-batches it had."""
    status = trainer.ppo_train(*([0.0] if role == "actor" else []))
    steps = trainer.replay_buffer.dynamic_optimizer_step
    ends = [index for index, last in enumerate(steps) if last]
    made, items = [update for update, _ in attached(trainer, _Updates).made], trainer.replay_buffer.items
    return {
        "micro_batches": [end - start for start, end in zip([-1, *ends], ends, strict=False)],
        "tokens": [sum(int(items[i].total_length) for i in rows) for rows in trainer.replay_buffer.dynamic_indices],
        "norms": [update.grad_norm for update in made],
        "scales": [update.loss_scale for update in made],
        "skipped": [update.skipped for update in made],
        "logged": {name: value for name, value in status.items() if name.startswith(f"{role}/")},
        "counts": vars(get_loss_scaler(engine_of(getattr(trainer, role))).counts),
    }


def trained(rank: int, *, role: str, stage: int, tokens: int, spoilt: float | None, folder: Path) -> Result:
    """Train on all answers once."""
    return train(new_trainer(rank, role, stage, tokens, spoilt, folder), role)


def unmarked(rank: int, **options: Any) -> Result:
    """Train without this package's mark at the last micro-batch of an update."""
    dynamic_batches.mark_boundary = lambda *_: None
    return trained(rank, **options)


def resumed(rank: int, *, stage: int, folder: Path) -> Result:
    """Train with an overflow, save, and train on in another engine that has loaded it."""
    first = new_trainer(rank, "actor", stage, PACKED, 1e15, folder)
    train(first, "actor")
    path = str(folder.parent / f"checkpoints-{stage}")
    first.strategy.save_ckpt(first.actor.model, path, tag="first", client_state={})
    second = new_trainer(rank, "actor", stage, PACKED, None, folder)
    second.strategy.load_ckpt(second.actor.model, path)
    return train(second, "actor")


def main(folder: Path) -> None:
    """Write the model, then run the cases."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # DeepSpeed wants them; the ranks have a group
    model = folder / "model"
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=WORDS, num_hidden_layers=1, tie_word_embeddings=False, use_cache=False, **CONFIG)
    AutoModelForCausalLM.from_config(config).half().save_pretrained(model)
    cases: dict[str, Any] = {}
    for stage in (2, 3):
        for role in ("actor", "critic"):
            for name, tokens, spoilt in (("packed", PACKED, None), ("whole", WHOLE, None), ("overflow", PACKED, 1e15)):
                options = {"role": role, "stage": stage, "tokens": tokens, "spoilt": spoilt}
                cases[f"{name}-{role}-{stage}"] = partial(trained, folder=model, **options)
        if stage == 2:
            cases["unmarked-actor-2"] = partial(
                unmarked, role="actor", stage=2, tokens=PACKED, spoilt=None, folder=model
            )
        nan: dict[str, Any] = {"role": "actor", "stage": stage, "tokens": PACKED, "spoilt": float("nan")}
        cases[f"nan-actor-{stage}"] = partial(trained, folder=model, **nan)
        cases[f"resumed-actor-{stage}"] = partial(resumed, stage=stage, folder=model)
    precision = Precision(loss_scaling=SETTINGS)
    run_all({name: Case(run, 2, precision) for name, run in cases.items()}, folder, sys.argv[2:])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
