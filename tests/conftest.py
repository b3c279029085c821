# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os

import pytest

# Models of recipes are hub ids; where there is no network the hub's client tries again and again to find one. To be set
# before anything imports it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For ``-n 2 --dist loadgroup``: a folder's tests share what they start, and one real framework runs at a time."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(str(item.path.parent)))
