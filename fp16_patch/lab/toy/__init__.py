# SPDX-License-Identifier: Apache-2.0
"""Build the toy task: a tiny policy, its tokenizer and problems that RL can solve, in about a minute.

The files are what the real frameworks read (a Hugging Face model folder, parquet files), so nothing downstream is
mocked. Importing this package loads neither torch nor transformers.
"""

from fp16_patch.lab.toy.settings import TOY_TASKS, Settings
from fp16_patch.lab.toy.toy_task import ToyTask, build, untrained_toy_task

__all__ = ["TOY_TASKS", "Settings", "ToyTask", "build", "untrained_toy_task"]
