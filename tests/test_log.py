# SPDX-License-Identifier: Apache-2.0
"""The package's logger: stdout, one format, rank 0 only, no torch."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from fp16_patch.log import logger


def test_a_message_goes_to_stdout_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(sys.stdout)])
    logger.info("precision %s", "fp16")
    assert capsys.readouterr() == ("fp16_patch: precision fp16\n", "")


@pytest.mark.parametrize(("rank", "out"), [(0, "fp16_patch: resumed\n"), (1, "")])
def test_only_rank_zero_logs(
    rank: int, out: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=2)
    try:
        logger.info("resumed")
    finally:
        dist.destroy_process_group()
    assert capsys.readouterr().out == out


def test_torch_is_not_imported() -> None:
    code = "import sys; from fp16_patch.log import logger; logger.info('x'); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "fp16_patch: x\n"
