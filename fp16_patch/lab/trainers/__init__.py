# SPDX-License-Identifier: Apache-2.0
"""The frameworks that a recipe can run on."""

from __future__ import annotations

from collections.abc import Mapping

from fp16_patch.lab.trainers.base import Trainer as Trainer
from fp16_patch.lab.trainers.openrlhf import OpenRLHF
from fp16_patch.lab.trainers.verl import Verl

TRAINERS: Mapping[str, Trainer] = {trainer.name: trainer for trainer in (Verl(), OpenRLHF())}
