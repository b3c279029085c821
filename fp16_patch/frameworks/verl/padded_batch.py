# SPDX-License-Identifier: Apache-2.0
"""Read and mask the answers of a step of verl's legacy trainer, which pads them into one batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from fp16_patch.rollout_health.non_finite import NonFinite

MASK = "response_mask"


class PaddedBatch:
    """A step's answers: tensors of a ``DataProto``, each padded ``[answers, tokens]``."""

    def __init__(self, data: Any) -> None:
        self.tensors = data.batch

    @property
    def keys(self) -> list[str]:
        """Return a name for each answer, as verl's V1 trainer forms it: its session and the output of the session."""
        return [f"{row}_0" for row in range(len(self.tensors[MASK]))]

    @property
    def responses(self) -> torch.Tensor:
        """Return the sampled token ids."""
        found: torch.Tensor = self.tensors["responses"]
        return found

    def __contains__(self, name: str) -> bool:
        return name in self.tensors.keys()  # noqa: SIM118 (a TensorDict refuses "in")

    def find(self, name: str) -> NonFinite:
        """Find the tokens whose log-prob ``name`` is not finite."""
        from fp16_patch.rollout_health.non_finite import find_non_finite

        return find_non_finite(self.tensors[name], self.tensors[MASK])

    def mask(self, masked: torch.Tensor) -> set[str]:
        """Take answers out of every loss and mean: no token of theirs counts, and none of their numbers is NaN.

        Args:
            masked: The answers, boolean ``[answers]``.

        Returns:
            Their keys.
        """
        for name in (MASK, "rollout_log_probs"):
            self.tensors[name][masked] = 0
        return {key for key, out in zip(self.keys, masked.tolist(), strict=True) if out}

    def prompts_and_answers(self, rows: Iterable[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the token ids of these prompts and of their answers, without padding."""
        prompts, responses, real = self.tensors["prompts"], self.responses, self.tensors["attention_mask"].bool()
        width = prompts.shape[1]
        return [(prompts[row][real[row, :width]], responses[row][real[row, width:]]) for row in rows]
