# SPDX-License-Identifier: Apache-2.0
"""A toy world: a tiny policy, its tokenizer and a perfectible task, made here in about a minute.

Everything it writes is what the real frameworks read (a Hugging Face model folder, parquet files), so nothing
downstream is mocked. Importing this loads neither torch nor transformers.
"""

from fp16_patch.lab.toy.world import WORLDS, Settings, World, build, untrained_world

__all__ = ["WORLDS", "Settings", "World", "build", "untrained_world"]
