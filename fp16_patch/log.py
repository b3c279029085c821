# SPDX-License-Identifier: Apache-2.0
"""Log to stdout as ``fp16_patch: message``, from global rank 0 only.

The logger does not propagate: frameworks set up the root logger, and a line must not appear twice or in another format.
"""

from __future__ import annotations

import logging
import sys


class _StdoutHandler(logging.Handler):
    """Write to the ``sys.stdout`` of the moment, which Ray and pytest replace."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


def _on_rank_zero(_record: logging.LogRecord) -> bool:
    """Return whether this is rank 0, as is a process without an initialized process group, such as the driver."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return True
    return bool(distributed.get_rank() == 0)


logger = logging.getLogger("fp16_patch")
if not logger.handlers:
    _handler = _StdoutHandler()
    _handler.setFormatter(logging.Formatter("fp16_patch: %(message)s"))
    _handler.addFilter(_on_rank_zero)
    logger.addHandler(_handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
