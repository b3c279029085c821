# SPDX-License-Identifier: Apache-2.0
"""Trace a real vLLM engine on the CPU, in a process of its own, and print what a test compares as JSON."""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}

WIDE = "model.layers.1.mlp.down_proj"
PROMPT = [3, 4, 5, 6, 7]


def write_policy(folder: Path) -> None:
    """Write a Qwen2 model, one of whose modules returns more than 65504; RMSNorm takes that back in FP32."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 128}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": False}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, initializer_range=0.2, max_position_embeddings=64))
    with torch.no_grad():
        model.get_submodule(WIDE).weight *= 2.0**15
    model.save_pretrained(folder)


def main(folder: Path) -> None:
    """Generate before, during and after a trace."""
    from vllm import LLM, SamplingParams
    from vllm.config import CompilationMode

    from fp16_patch.engines.vllm.trace import is_eager, read_traces, start_trace, take_trace
    from fp16_patch.engines.vllm.trace_report import save, summarize

    write_policy(folder / "policy")
    llm = LLM(
        str(folder / "policy"),
        dtype="float16",
        enforce_eager=True,
        skip_tokenizer_init=True,
        kv_cache_memory_bytes=2**24,
        max_model_len=32,
        max_num_batched_tokens=4,  # a prompt needs two passes
    )

    def sample(**settings: object) -> list[int]:
        parameters = SamplingParams(max_tokens=1, temperature=0, detokenize=False, **settings)
        (output,) = llm.generate([{"prompt_token_ids": PROMPT}], parameters, use_tqdm=False)
        return list(output.outputs[0].token_ids)

    plain = sample()
    started = llm.collective_rpc(start_trace)
    traced = sample(skip_reading_prefix_cache=True)
    trace = read_traces(llm.collective_rpc(take_trace))
    after, empty = sample(), read_traces(llm.collective_rpc(take_trace))
    compiled = copy.deepcopy(llm.llm_engine.vllm_config)
    compiled.model_config.enforce_eager, compiled.compilation_config.mode = False, CompilationMode.VLLM_COMPILE
    report = save(trace, {"step": 1}, folder, "rollout_overflow")
    found = {
        "tokens": [plain, traced, after],
        "started": started,
        "rows": {row.module: [row.activation_peak, row.activation_nonfinite] for row in trace.rows},
        "after": len(empty.rows),
        "eager": is_eager(llm.llm_engine.vllm_config),
        "compiled": is_eager(compiled),
        "summary": summarize(trace),
        "report": json.loads(report.read_text()),
    }
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
