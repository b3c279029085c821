# SPDX-License-Identifier: Apache-2.0
"""Cases for test_megatron_platform.py: stock verl on stock Megatron, on a CPU."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from engine_ranks import Result
from megatron_building import adam_steps, digest, exported, hugging_face, new_engine, scales
from megatron_registry import LAYOUTS, batch, case, folder, model, train
from verl.workers.config import CriticConfig
from verl.workers.utils.losses import value_loss

STEPS = 3
IN_BF16_TOO = ("1", "tp2", "pp2", "dp2", "moe-1", "moe-ep2")


def round_trip(rank: int, *, layout: str, dtype: str) -> Result:
    """Load weights, compute log-probs, export weights, and make some updates."""
    engine = new_engine(model(layout), dtype, **LAYOUTS[layout][1])
    sent = against_hugging_face(exported(engine), layout)
    errors = log_prob_errors(engine, layout)
    updates = [facts(engine, train(engine, seed)) for seed in range(STEPS)]
    freed = any(module.config.deallocate_pipeline_outputs for module in engine.module)
    return {"sent": sent, "log prob errors": errors, "updates": updates, "frees what it sends": freed}


def resumed(rank: int, *, layout: str) -> Result:
    """Make the updates after a checkpoint, by the engine that wrote it and by one that read it."""
    _, spread = LAYOUTS[layout]
    engine, path = new_engine(model(layout), "fp16", **spread), str(folder() / f"checkpoint-{layout}")
    for seed in range(STEPS):
        train(engine, seed)
    engine.save_checkpoint(path, global_step=STEPS)
    saved = digest(engine)
    on = [facts(engine, train(engine, seed)) for seed in range(STEPS, 2 * STEPS)]
    other = new_engine(model(layout), "fp16", **spread)
    other.load_checkpoint(path, del_local_after_load=False)
    loaded = digest(other)
    again = [facts(other, train(other, seed)) for seed in range(STEPS, 2 * STEPS)]
    return {"saved": saved, "loaded": loaded, "uninterrupted": on, "resumed": again}


def saved_to_be_resharded(rank: int) -> Result:
    """Two ranks with tensor parallelism write a checkpoint for any layout, and train on."""
    engine = new_engine(model("tp2"), "fp16", tp=2, dist_ckpt_optim_fully_reshardable=True)
    for seed in range(STEPS):
        train(engine, seed)
    engine.save_checkpoint(str(folder() / "checkpoint-any"), global_step=STEPS)
    return {"updates": [facts(engine, train(engine, seed)) for seed in range(STEPS, 2 * STEPS)]}


def resharded(rank: int, *, layout: str) -> Result:
    """Without "extra", the random states: verl saves one for each place in the layout, and finds no other's."""
    engine = new_engine(
        model(layout),
        "fp16",
        **LAYOUTS[layout][1],
        dist_ckpt_optim_fully_reshardable=True,
        checkpoint={"load_contents": ["model", "optimizer"]},
    )
    engine.load_checkpoint(str(folder() / "checkpoint-any"), del_local_after_load=False)
    return {"updates": [facts(engine, train(engine, seed)) for seed in range(STEPS, 2 * STEPS)]}


def critic(rank: int) -> Result:
    """The value head's update, with verl's own loss."""
    engine = new_engine(model("1"), "fp16", model_type="value_model")
    loss = partial(value_loss, CriticConfig(strategy="megatron", ppo_micro_batch_size_per_gpu=2))
    updates = [facts(engine, train(engine, seed, loss)) for seed in range(STEPS)]
    return {"updates": updates}


def facts(engine: Any, outputs: dict[str, Any]) -> dict[str, Any]:
    """Of an update, on this rank."""
    return {
        "loss": [float(loss) for loss in outputs.get("loss", [])],
        "norm": outputs.get("metrics", {}).get("grad_norm"),
        "scales": scales(engine),
        "steps": adam_steps(engine),
        "weights": digest(engine),
    }


def checkpoint(layout: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(model(layout) / "model.safetensors")


def against_hugging_face(sent: dict[str, torch.Tensor], layout: str) -> dict[str, Any]:
    """Compare names, and values after one rounding to the dtype that they are sent in."""
    held = checkpoint(layout)
    wrong = [
        name for name, weight in sent.items() if name in held and not torch.equal(held[name].to(weight.dtype), weight)
    ]
    return {
        "missing": sorted(set(held) - set(sent)),
        "unknown": sorted(set(sent) - set(held)),
        "dtypes": sorted({str(weight.dtype).removeprefix("torch.") for weight in sent.values()}),
        "not rounded once": wrong,
    }


def log_prob_errors(engine: Any, layout: str) -> list[float]:
    """How far this rank's log-probs are from transformers' in FP32, in order of size; [] where there are none."""
    data = batch(engine)
    with engine.eval_mode():
        outputs = engine.infer_batch(data)
    if not engine.is_mp_src_rank_with_outputs():
        return []
    theirs, errors = hugging_face(model(layout)), []
    for tokens, ours in zip(data["input_ids"].unbind(), outputs["model_output"]["log_probs"].unbind(), strict=True):
        with torch.no_grad():
            logits = theirs(tokens[None]).logits[0, :-1]
        exact = torch.log_softmax(logits, -1).gather(-1, tokens[1:, None])[:, 0]
        errors += (ours[:-1].float() - exact).abs().tolist()
    return sorted(errors)


for layout, (ranks, _) in LAYOUTS.items():
    case(f"fp16-{layout}", partial(round_trip, layout=layout, dtype="fp16"), ranks)
for layout in IN_BF16_TOO:
    case(f"bf16-{layout}", partial(round_trip, layout=layout, dtype="bf16"), LAYOUTS[layout][0])
for layout in ("1", "tp2", "pp2", "dp2", "moe-ep2"):
    case(f"resumed-{layout}", partial(resumed, layout=layout), LAYOUTS[layout][0])
case("to-be-resharded", saved_to_be_resharded, 2)
for layout in ("1", "tp2", "pp2", "dp2"):
    case(f"resharded-{layout}", partial(resharded, layout=layout), LAYOUTS[layout][0])
case("critic", critic, 1)
