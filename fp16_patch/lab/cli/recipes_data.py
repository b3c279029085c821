# SPDX-License-Identifier: Apache-2.0
"""``fp16-patch recipes data``: build the sanity test for a model, or only convert a dataset."""

from __future__ import annotations

import argparse
import functools
from dataclasses import fields
from pathlib import Path
from typing import Any

from fp16_patch.lab.cli.argument_types import integer, number, positive, yaml_option
from fp16_patch.lab.data import selection, templates

_say = functools.partial(print, flush=True)


def add_parser(subparsers: Any) -> None:
    """Add ``data`` with its commands. Each sets ``handler``, a function that returns the exit status."""
    data = subparsers.add_parser("data", help="make the data of recipes: the sanity test, or a dataset's files")
    commands = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND")

    sanity = commands.add_parser(
        "sanity",
        help="keep the problems that a model solves in some of its samples",
        description="Sample answers to every problem with vLLM, judge them, keep the problems solved in a share of the "
        "samples. The same command resumes a run that was killed. Another --reward, --keep or --limit uses the samples "
        "again.",
    )
    sanity.add_argument("--model", required=True, metavar="M", help="a folder or a hub id")
    _add_dataset(sanity)
    default = "(default: %(default)s)"
    sanity.add_argument("--samples", type=positive, default=selection.SAMPLES, metavar="N", help=default)
    sanity.add_argument(
        "--keep", type=number, nargs=2, default=selection.KEEP, metavar=("LOW", "HIGH"), help="(default: 0.2 0.8)"
    )
    reward = "math, exact, or a Python file with compute_score (default: math)"
    sanity.add_argument("--reward", default="math", metavar="R", help=reward)
    sanity.add_argument("--max-tokens", type=positive, default=8192, metavar="N", help=f"of an answer {default}")
    sanity.add_argument("--temperature", type=number, default=1.0, metavar="T", help=default)
    sanity.add_argument("--top-p", type=number, default=1.0, metavar="P", help=default)
    dtypes = ("float16", "bfloat16", "float32")
    sanity.add_argument("--dtype", choices=dtypes, default=dtypes[0], help=f"of the rollout {default}")
    sanity.add_argument("--seed", type=integer, default=0, metavar="S", help=default)
    sanity.add_argument("--tensor-parallel-size", type=positive, default=1, metavar="N", help=f"GPUs {default}")
    batch = f"problems sampled, then saved, at a time {default}"
    sanity.add_argument("--batch", type=positive, default=128, metavar="N", help=batch)
    option = "an argument of vllm.LLM; may be repeated"
    sanity.add_argument("--vllm", type=yaml_option, action="append", default=[], metavar="KEY=VALUE", help=option)
    sanity.set_defaults(handler=_sanity)

    both = "write a dataset's problems as parquet for verl and JSON Lines for OpenRLHF"
    convert = commands.add_parser("convert", help=both)
    _add_dataset(convert)
    convert.set_defaults(handler=_convert)


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", required=True, metavar="D", help="a file, a folder, or a hub id")
    parser.add_argument("--config", metavar="C", help="configuration of the dataset, such as main of openai/gsm8k")
    parser.add_argument("--split", metavar="S", help="split of the dataset (default: train)")
    parser.add_argument("--question-key", metavar="K", help="column of the question, if it has an unusual name")
    parser.add_argument("--answer-key", metavar="K", help="column of the answer, if it has an unusual name")
    parser.add_argument(
        "--template",
        metavar="T",
        help=f"{', '.join(templates.TEMPLATES)}, or a text with {{question}} in it; verl and OpenRLHF put the model's "
        f"chat template around it (default: {templates.DEFAULT}, and prompts that the dataset has as they are)",
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="the first N problems only")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files")
    name = "name of the files without the suffix (default: train)"
    parser.add_argument("--name", default="train", metavar="N", help=name)


def _sanity(arguments: argparse.Namespace) -> int:
    from fp16_patch.lab.data.output import Output
    from fp16_patch.lab.data.sanity import Sanity, build
    from fp16_patch.lab.data.settings import Sampling

    sanity = Sanity(
        dataset=_dataset(arguments),
        sampling=Sampling(**{field.name: getattr(arguments, field.name) for field in fields(Sampling)}),
        reward=arguments.reward,
        keep=tuple(arguments.keep),
        limit=arguments.limit,
        batch=arguments.batch,
        vllm=dict(arguments.vllm),
    )
    try:
        build(sanity, Output(arguments.out, arguments.name), _say)
    except KeyboardInterrupt:
        print("\ninterrupted; the samples are kept, and the same command resumes")
        return 130
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from fp16_patch.lab.data.convert import convert
    from fp16_patch.lab.data.output import Output

    convert(_dataset(arguments), Output(arguments.out, arguments.name), limit=arguments.limit, say=_say)
    return 0


def _dataset(arguments: argparse.Namespace) -> Any:
    from fp16_patch.lab.data.fields import Columns
    from fp16_patch.lab.data.reading import DatasetSpec
    from fp16_patch.lab.data.source import Source

    return DatasetSpec(
        Source(arguments.dataset, arguments.config, arguments.split),
        arguments.template,
        Columns(arguments.question_key, arguments.answer_key),
    )
