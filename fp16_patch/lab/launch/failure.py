# SPDX-License-Identifier: Apache-2.0
"""Find in the log why a run failed: an error of fp16_patch, else the last traceback."""

from __future__ import annotations

import re
from itertools import takewhile
from pathlib import Path

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_PREFIXES = re.compile(
    r"(?P<who>(?:\([^()]*\bpid=\d+[^()]*\) ?)*)"  # Ray's and vLLM's: (TaskRunner pid=7) (EngineCore pid=8)
    r"(?:(?:INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\] ?)?"  # vLLM's, on every frame
)
_DIED = "died unexpectedly"  # vLLM, of its worker processes
_TRACEBACK = "Traceback (most recent call last):"
_OURS = "fp16_patch: "
_OUR_DETAILS = ("  allowed: ", "  next step: ", "- ")
_USAGE = re.compile(r"\S+: error: ")  # argparse, after pages of usage
_LONGEST = 30  # lines of a traceback worth showing on a terminal
_LONGEST_LINE = 300  # characters
_TAIL_BYTES = 2_000_000

Found = tuple[int, str]  # line number, message
Stream = list[tuple[int, str]]  # the lines of one process with their numbers


def reason(log: Path) -> str:
    """Return an error of fp16_patch, else the last traceback, else the last lines of the log.

    Ray mixes the output of many processes, so the lines are first separated by process. The driver's traceback is
    preferred: it contains the worker's, while other processes print tracebacks at shutdown.
    """
    streams = _streams(log)
    # This comes first: the tracebacks that follow are of processes that miss it.
    died = [text for stream in streams.values() for _, text in stream if _DIED in text][:1]
    driver = streams.pop("", [])
    others = list(streams.values())
    for found in (
        [_our_error(stream) for stream in [driver, *others]],
        [_last_traceback(driver)],
        [_last_traceback(stream) for stream in others],
    ):
        if last := max(filter(None, found), default=None):
            return "\n".join([*died, last[1]])
    shown = 1 if driver and _USAGE.match(driver[-1][1]) else 10
    return "\n".join([*died, *(line for _, line in driver[-shown:] or [(0, "the log is empty")])])


def _streams(log: Path) -> dict[str, Stream]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return {}
    streams: dict[str, Stream] = {}
    for number, line in enumerate(re.split(r"[\r\n]+", _ANSI.sub("", text))):
        if line.strip():
            prefix = _PREFIXES.match(line)
            assert prefix is not None  # every part of it is optional
            streams.setdefault(prefix["who"].strip(), []).append((number, line[prefix.end() :].rstrip()))
    return streams


def _our_error(stream: Stream) -> Found | None:
    """Return the last error of fp16_patch. Its other messages start with the same word."""
    found = None
    for i, (number, line) in enumerate(stream):
        raised = f"Fp16PatchError: {_OURS}" in line
        if not raised and not line.startswith(_OURS):
            continue
        details = list(takewhile(lambda text: text.startswith(_OUR_DETAILS), (text for _, text in stream[i + 1 :])))
        last_words = i == len(stream) - 1
        if raised or details or last_words:
            found = (number, "\n".join([line[line.index(_OURS) :], *details]))
    return found


def _last_traceback(stream: Stream) -> Found | None:
    found = None
    for i, (number, line) in enumerate(stream):
        harmless = i > 0 and stream[i - 1][1].startswith("Exception ignored in")
        if _TRACEBACK in line and not harmless:
            found = (number, _shortened(_traceback([text for _, text in stream[i:]])))
    return found


def _traceback(lines: list[str]) -> list[str]:
    """Return the frames and the exception's line, and what Ray prints below of the worker."""
    end = 1
    while end < len(lines) and lines[end].startswith(" "):
        while end < len(lines) and lines[end].startswith(" "):
            end += 1
        end += 1
    # Ray on an actor that died: its class, its pid, and how
    facts = list(takewhile(lambda line: line.startswith("\t"), lines[end:]))
    how = lines[end + len(facts) :][:1] if facts else []
    return [*lines[:end], *facts, *(line[:_LONGEST_LINE] for line in how)]


def _shortened(lines: list[str]) -> str:
    if len(lines) > _LONGEST:
        left_out = len(lines) - _LONGEST + 1
        lines = [*lines[:3], f"  ... {left_out} lines, see the log ...", *lines[3 + left_out :]]
    return "\n".join(lines)
