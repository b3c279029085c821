# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import json
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# No test may fail because the machine is busy.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

pytest_plugins = ("run_cases",)  # tests/support

# Models of recipes are hub ids; where there is no network the hub's client tries again and again to find one. To be set
# before anything imports it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

DURATIONS = Path(__file__).with_name("durations.json")
"""Seconds of each folder, written by scripts/test_durations.py."""


@pytest.fixture
def room_for() -> Callable[[int], AbstractContextManager[None]]:
    """``with room_for(size):`` writing more into a file fails, as on a disk that is full."""
    return _room_for


@contextlib.contextmanager
def _room_for(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the folders that take longest first, so that no worker starts one of them when the other is done."""
    recorded = json.loads(DURATIONS.read_text())["folders"]

    def seconds(item: pytest.Item) -> float:
        return float(recorded.get(_folder(item.nodeid), {"seconds": 0})["seconds"])

    items.sort(key=lambda item: -seconds(item))  # stable: a folder's tests keep their order


def _folder(nodeid: str) -> str:
    return nodeid.partition("::")[0].rpartition("/")[0]


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a folder's tests on one worker and in order (``pytest -n 2``): they share what they start."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFolder(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _folder(nodeid)

    return ByFolder(config, log)
