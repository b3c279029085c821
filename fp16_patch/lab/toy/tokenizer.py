# SPDX-License-Identifier: Apache-2.0
"""Build a tokenizer with one token per character that transformers, vLLM and verl accept as Qwen2's."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
"""Qwen's own names: verl looks up ``<|im_end|>``, and a one-token newline, for every qwen2 model."""

CHARACTERS = "\t\n " + string.digits + string.ascii_letters + string.punctuation

CONTENTS_ONLY = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""Chat template without roles: the prompt of a single user message is that message."""


def character_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of printable ASCII, tab and newline: 100 tokens, no unknown-token id, no merges.

    ``len(tokenizer)`` must be the model's ``vocab_size``: verl masks a padded tail in vLLM and not in the trainer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # AutoTokenizer rebuilds every qwen2 tokenizer as byte-level BPE, so it is one from the start: a vocabulary in
    # byte-level spelling (a blank is U+0120) and no merges. Any other kind would change its ids when loaded.
    spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    names = [PAD, START, END, *(spelling.pre_tokenize_str(character)[0][0] for character in CHARACTERS)]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = spelling
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CONTENTS_ONLY
    return wrapped
