# SPDX-License-Identifier: Apache-2.0
"""What is written to disk is what transformers reads back: model, tokenizer, generation config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fp16_patch.lab.toy.model import new_model, tiny_model
from fp16_patch.lab.toy.sampling import sample
from fp16_patch.lab.toy.tokenizer import CHARACTERS, character_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_the_loaded_tokenizer_gives_one_token_per_character(
    loaded: Any,
) -> None:
    ids = loaded.encode(CHARACTERS, add_special_tokens=False)
    assert ids == character_tokenizer().encode(CHARACTERS, add_special_tokens=False)
    assert len(set(ids)) == len(ids) == len(CHARACTERS)
    assert loaded.decode(ids) == CHARACTERS


def test_the_vocabulary_is_the_models(folder: Path, loaded: Any) -> None:
    config = transformers.AutoConfig.from_pretrained(folder)
    assert len(loaded) == config.vocab_size, "verl masks a padded tail in vLLM and not in the trainer"
    assert (config.eos_token_id, config.pad_token_id) == (loaded.eos_token_id, loaded.pad_token_id)
    assert loaded.eos_token_id != loaded.pad_token_id


def test_verls_qwen_code_finds_its_tokens(loaded: Any) -> None:
    assert len(loaded.encode("\n", add_special_tokens=False)) == 1
    assert loaded.encode("<|im_end|>", add_special_tokens=False) == [loaded.eos_token_id]
    assert loaded.decode([loaded.eos_token_id, loaded.pad_token_id], skip_special_tokens=True) == ""


def test_the_chat_template_adds_nothing(loaded: Any) -> None:
    messages = [{"role": "user", "content": "7+4="}]
    assert loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == "7+4="


def test_the_model_is_a_float32_qwen2_without_sampling_defaults(folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.model_type == "qwen2"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert sum(parameter.numel() for parameter in model.parameters()) < 150_000
    told = json.loads((folder / "generation_config.json").read_text())
    odd = {"temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "max_length"} & set(told)
    assert not odd, "vLLM would sample with these"


def test_weights_depend_on_the_seed_alone_and_leave_the_callers_random_state() -> None:
    tokenizer = character_tokenizer()
    before = torch.random.get_rng_state()
    first, again, other = (new_model(tokenizer, hidden=64, layers=1, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_sampling_with_the_cache_is_sampling_without_it() -> None:
    tokenizer = character_tokenizer()
    model = new_model(tokenizer, hidden=64, layers=2, seed=0).eval()
    with torch.no_grad():  # an untrained model hardly ever ends a sequence
        model.lm_head.weight[tokenizer.eos_token_id] *= 4
    prompts = tokenizer(["1+2=", "9+9=", "3+4="], return_tensors="pt").input_ids
    got = sample(model, prompts, samples=8, max_tokens=12, rng=torch.Generator().manual_seed(5))

    rng, rows = torch.Generator().manual_seed(5), prompts.repeat_interleave(8, dim=0)
    ended = torch.zeros(len(rows), dtype=torch.bool)
    for _ in range(got.shape[1]):
        with torch.no_grad():
            odds = model(input_ids=rows).logits[:, -1].softmax(-1)
        token = torch.multinomial(odds, 1, generator=rng).squeeze(1)
        token[ended] = tokenizer.pad_token_id
        ended |= token == tokenizer.eos_token_id
        rows = torch.cat([rows, token[:, None]], dim=1)
    assert ended.any(), "the case should cover ended sequences"
    assert torch.equal(got, rows[:, prompts.shape[1] :])
