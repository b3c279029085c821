# SPDX-License-Identifier: Apache-2.0
"""Cases for test_megatron_platform.py: stock verl on stock Megatron, on a CPU."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from engine_ranks import Result
from megatron_building import adam_steps, digest, exported, gradient_buffers, hugging_face, new_engine, scales
from megatron_registry import LAYOUTS, batch, case, folder, model, train


STEPS = 3


def round_trip(rank: int, *, layout: str, dtype: str) -> Result:
    """Weights in, log-probs, weights out; some updates; a checkpoint, and the same update from it as without it."""
    _, spread = LAYOUTS[layout]
    engine = new_engine(model(layout), dtype, **spread)
    weights = against_hugging_face(exported(engine), layout)
    error = log_prob_error(engine, layout)
    updates = [facts(engine, train(engine, seed)) for seed in range(STEPS)]
    moved = exported(engine)
    path = str(folder() / f"checkpoint-{layout}-{dtype}")
    engine.save_checkpoint(path, global_step=STEPS)
    uninterrupted = [facts(engine, train(engine, STEPS + number)) for number in range(2)]
    again = new_engine(model(layout), dtype, **spread)
    again.load_checkpoint(path, del_local_after_load=False)
    loaded = exported(again)
    restored = all(torch.equal(moved[name], weight) for name, weight in loaded.items())
    resumed = [facts(again, train(again, STEPS + number)) for number in range(2)]
    return {
        "weights": weights,
        "log prob error": error,
        "updates": updates,
        "moved": sum(not torch.equal(before, moved[name]) for name, before in hf_weights(layout, dtype).items()),
        "restored": restored,
        "uninterrupted": uninterrupted,
        "resumed": resumed,
    }


def facts(engine: Any, outputs: dict[str, Any]) -> dict[str, Any]:
    """Of an update, on this rank."""
    return {
        "loss": [float(loss) for loss in outputs.get("loss", [])],
        "norm": outputs.get("metrics", {}).get("grad_norm"),
        "scales": scales(engine),
        "steps": adam_steps(engine),
        "weights": digest(engine),
    }


def hf_weights(layout: str, dtype: str) -> dict[str, torch.Tensor]:
    """Hugging Face's, rounded once."""
    to = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    return {name: weight.to(to) for name, weight in checkpoint(layout).items()}


def checkpoint(layout: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(model(layout) / "model.safetensors")


def against_hugging_face(sent: dict[str, torch.Tensor], layout: str) -> dict[str, Any]:
    """Names, and values after one rounding to the dtype they are sent in."""
    held = checkpoint(layout)
    wrong = [name for name, weight in sent.items() if name in held and not torch.equal(held[name].to(weight.dtype), weight)]
    return {
        "missing": sorted(set(held) - set(sent)),
        "unknown": sorted(set(sent) - set(held)),
        "dtypes": sorted({str(weight.dtype).removeprefix("torch.") for weight in sent.values()}),
        "not rounded once": wrong,
    }


def log_prob_error(engine: Any, layout: str) -> float | None:
    """The largest difference of this rank's log-probs to transformers' in FP32; None where there are none."""
    data = batch(engine)
    with engine.eval_mode():
        outputs = engine.infer_batch(data)
    if not engine.is_mp_src_rank_with_outputs():
        return None
    theirs, worst = hugging_face(model(layout)), 0.0
    for tokens, ours in zip(data["input_ids"].unbind(), outputs["model_output"]["log_probs"].unbind(), strict=True):
        with torch.no_grad():
            logits = theirs(tokens[None]).logits[0, :-1]
        exact = torch.log_softmax(logits, -1).gather(-1, tokens[1:, None])[:, 0]
        worst = max(worst, float((ours[:-1].float() - exact).abs().max()))
    return worst


for layout, (ranks, _) in LAYOUTS.items():
    for dtype in ("bf16", "fp16"):
        case(f"{dtype}-{layout}", partial(round_trip, layout=layout, dtype=dtype), ranks)


def first_overflow(rank: int, *, layout: str) -> Result:
    """An infinity in one gradient of the last rank."""
    ranks, spread = LAYOUTS[layout]
    engine = new_engine(model(layout), "fp16", **spread)
    original = engine.optimizer_step

    def optimizer_step() -> Any:
        if rank == ranks - 1:
            gradient_buffers(engine)[0][0] = float("inf")
        return original()

    engine.optimizer_step = optimizer_step
    before = digest(engine)
    try:
        train(engine)
        error = None
    except NotImplementedError as raised:
        error = str(raised)
    return {"error": error, "scales": scales(engine), "changed": digest(engine) != before}


for layout, (ranks, _) in LAYOUTS.items():
    case(f"overflow-{layout}", partial(first_overflow, layout=layout), ranks)
