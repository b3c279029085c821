# SPDX-License-Identifier: Apache-2.0
"""Assert which error came, by its code and by what it names, and not by its English."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fp16_patch.errors import Fp16PatchError


@contextmanager
def raises_code(code: str, *named: object) -> Iterator[pytest.ExceptionInfo[Fp16PatchError]]:
    """Expect an :class:`Fp16PatchError` of this ``code`` whose message names each of ``named``.

    An error that combines several has all their codes.
    """
    with pytest.raises(Fp16PatchError) as caught:
        yield caught
    check_error(caught.value, code, *named)


def check_error(error: Fp16PatchError, code: str, *named: object) -> None:
    """Assert the code of ``error`` and that its message names each of ``named``."""
    assert code in (error.code, *error.codes), f"{error.code} {error.codes}: {error}"
    missing = [text for text in map(str, named) if text not in str(error)]
    assert not missing, f"{missing} not named in: {error}"
