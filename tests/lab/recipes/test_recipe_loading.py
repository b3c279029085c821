# SPDX-License-Identifier: Apache-2.0
"""A recipe is read as written, and every mistake in it is one clear error."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, get_args, get_type_hints

import pytest
from raising import raises_code

from fp16_patch.lab.arms.command import Job
from fp16_patch.lab.cpu.rounded_rollout import VARIABLE
from fp16_patch.lab.launch import plan
from fp16_patch.lab.loading.load import available, find, load
from fp16_patch.lab.recipes import schema
from fp16_patch.lab.toy import ToyTask
from fp16_patch.lab.trainers import TRAINERS

Write = Callable[..., Path]


@pytest.mark.parametrize("where", ["recipe", "arm", "user"])
def test_megatron_gets_its_platform_from_recipe_arm_and_override(
    write_recipe: Write, tmp_path: Path, where: str
) -> None:
    asked = "model_engine: megatron"
    edits = [("hardware:", "platform: cpu\nhardware:")]
    if where == "recipe":
        edits.append(("total_training_steps: 4", f"total_training_steps: 4\n    {asked}"))
    if where == "arm":
        edits.append(("{precision: fp16}", f"{{precision: fp16, overrides: {{{asked}}}}}"))
    overrides = ("model_engine=megatron",) if where == "user" else ()
    job = Job(load(write_recipe(*edits)), "fp16", tmp_path, overrides)
    command = TRAINERS["verl"].build_command(job)
    assert "fp16_patch.lab.cpu.megatron" in command.environment["VERL_USE_EXTERNAL_MODULES"].split(",")
    text = " ".join(command.arguments)
    assert "actor.megatron.use_remove_padding=False" in text
    assert "fsdp_config" not in text


@pytest.mark.parametrize("path", available(), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_and_named_as_its_file(path: Path) -> None:
    assert load(path).name == path.stem


def test_the_recipe_that_the_documentation_writes(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "own-recipes.md").read_text()
    (tmp_path / "mine.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0])
    recipe = load(tmp_path / "mine.yaml")
    assert list(recipe.arms) == ["bf16", "fp16", "one-sided"]
    assert recipe.frameworks == ("verl",)
    assert recipe.hyperparameters["steps"].value == 1000
    assert recipe.hyperparameters["prompts"].value == 64, "the shared file's"


def test_the_schema_of_a_recipe_is_readable_in_python_3_10() -> None:
    """There ``get_type_hints`` refuses an annotation that is a plain ``ClassVar``."""
    plain = [
        f"{name}.{field}"
        for name, cls in vars(schema).items()
        if dataclasses.is_dataclass(cls)
        for field, kind in get_type_hints(cls).items()
        if kind is ClassVar
    ]
    assert get_args(get_type_hints(schema.Recipe)["ALSO"])
    assert plain == []


def test_the_flags_options_are_the_ones_a_recipe_may_name() -> None:
    assert {"bf16", "fp16", "fp32"} <= set(TRAINERS["verl"].precisions)


MISTAKES = {
    "unknown key": (
        "model: {path: some/model}",
        "model: {path: m, dtype: fp16}",
        "unknown-key",
        "model.dtype='fp16'",
        "path, about",
    ),
    "unknown section": ("algorithm:", "seed: 1\nalgorithm:", "unknown-key", "seed=1", "extends"),
    "missing key": ("{ranks: 1, timeout_minutes: 1}", "{ranks: 1}", "key-missing", "hardware.timeout_minutes", ""),
    "text for a number": ("ranks: 1", "ranks: two", "wrong-type", "hardware.ranks='two'", "a whole number"),
    "a fraction of a rank": ("ranks: 1", "ranks: 1.5", "wrong-type", "hardware.ranks=1.5", "a whole number"),
    "boolean for a number": ("ranks: 1", "ranks: true", "wrong-type", "hardware.ranks=True", "a whole number"),
    "no ranks": ("ranks: 1", "ranks: 0", "value-not-allowed", "hardware.ranks=0", "more than zero"),
    "misspelt precision": (
        "precision: bf16",
        "precision: bf61",
        "not-a-precision",
        "arms.bf16.precision='bf61'",
        "bf16, fp16, fp32",
    ),
    "arm name": ("  bf16: {", "  ../bf16: {", "invalid-name", "'../bf16'", "a-z"),
    "arm of a folder's name": ("  bf16: {", "  world: {", "invalid-name", "arms.world", "another"),
    "text for a mapping": ("{precision: bf16}", "bf16", "wrong-type", "arms.bf16='bf16'", "a mapping"),
    "platform": ("algorithm:", "platform: tpu\nalgorithm:", "value-not-allowed", "platform='tpu'", "cpu"),
    "world": ("algorithm:", "world: atari\nalgorithm:", "value-not-allowed", "world='atari'", "toy"),
    "placeholder": (
        "some/model",
        "'{world.model}'",
        "unknown-placeholder",
        "model.path='{world.model}'",
        "{world.train}, {world.val}",
    ),
    "launcher's key": ("trainer.total_training_steps:", "trainer.logger:", "option-reserved", "trainer.logger", ""),
    "nested override": ("trainer.total_training_steps: 4", "a: {b: 1}", "wrong-type", "a={'b': 1}", "text, number"),
    "no framework": (
        "verl:\n  overrides:\n    trainer.total_training_steps: 4",
        "",
        "framework-missing",
        "tiny.yaml",
        "verl, openrlhf",
    ),
    "no validation data": (", val: val.parquet", "", "key-missing", "data.val", "verl"),
    "another framework's options": (
        "precision: bf16",
        "precision: bf16, arguments: {a: 1}",
        "key-refused",
        "arms.bf16.arguments",
        "",
    ),
    "rounding on a GPU": (
        "precision: bf16",
        "precision: bf16, rollout_significand: 5",
        "value-not-allowed",
        "rollout_significand=5",
        "cpu",
    ),
    "no bound": (", at_least: 6", "", "bound-missing", "headline.prob_diff_ratio", "at_least"),
    "key given twice": ("some/model}", "some/model, path: b}", "recipe-unreadable", "'path'", ""),
    "not yaml": ("name: tiny", "name: [", "recipe-unreadable", "tiny.yaml", ""),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_naming_key_value_and_what_is_allowed(write_recipe: Write, mistake: str) -> None:
    old, new, code, named, allowed = MISTAKES[mistake]
    with raises_code(code, "tiny.yaml", named, allowed):
        load(write_recipe((old, new)))


def test_all_mistakes_are_one_error(write_recipe: Write) -> None:
    with raises_code("several-problems") as error:
        load(write_recipe(("ranks: 1", "ranks: two"), ("some/model", "m, typo: 1")))
    assert sorted(error.value.codes) == ["unknown-key", "wrong-type"]


def test_numbers_without_a_point_are_numbers_and_thresholds_stay_text(write_recipe: Write) -> None:
    recipe = load(write_recipe(("steps: 4", "steps: 4\n    lr: 1e-6\n    threshold: 1e-9_2\n    quoted: '1e-6'")))
    assert recipe.verl.overrides["lr"] == 1e-6
    assert recipe.verl.overrides["threshold"] == "1e-9_2"
    assert recipe.verl.overrides["quoted"] == "1e-6"


def test_an_unknown_name_lists_the_recipes_there_are() -> None:
    with raises_code("recipe-not-found", "'quikstart'", "quickstart"):
        find("quikstart")


def test_the_command_of_an_arm(write_recipe: Write, tmp_path: Path) -> None:
    edit = ("{precision: fp16}", "{precision: fp16, overrides: {fp16_patch.rollout_dtype: bf16, trainer.nnodes: 2}}")
    recipe = load(write_recipe(edit))
    job = Job(recipe, "fp16", tmp_path / "with space", ("trainer.total_training_steps=9",))
    command = TRAINERS["verl"].build_command(job)
    _, dash_m, module, *overrides = command.arguments
    assert (dash_m, module) == ("-m", "verl.trainer.main_ppo")
    assert command.total_steps == 9
    values = dict(o.split("=", 1) for o in overrides)
    assert values["actor_rollout_ref.model.path"] == "some/model"
    assert values["+precision@_global_"] == "fp16"
    assert values["fp16_patch.rollout_dtype"] == "bf16"
    assert values["trainer.nnodes"] == "2"
    assert values["fp16_patch.report_path"] == f"'{tmp_path}/with space/fp16/precision_report.json'"
    assert command.environment["VERL_FILE_LOGGER_PATH"] == f"{tmp_path}/with space/fp16/metrics.jsonl"


@pytest.mark.parametrize("bits", [0, 11])
def test_bits_that_no_significand_has_are_refused(write_recipe: Write, bits: int) -> None:
    arm = ("{precision: fp16}", f"{{precision: fp16, rollout_significand: {bits}}}")
    with raises_code("value-not-allowed", f"rollout_significand={bits}", "1 to 10, and platform: cpu"):
        load(write_recipe(("algorithm:", "platform: cpu\nalgorithm:"), arm))


@pytest.mark.parametrize("framework", TRAINERS)
def test_an_arm_with_a_rounded_rollout_asks_the_platform_for_it(framework: str, tmp_path: Path) -> None:
    recipe = load(find("quickstart" if framework == "verl" else f"quickstart-{framework}"))
    fewer = dataclasses.replace(recipe.arms["fp16"], rollout_significand=5)
    recipe = dataclasses.replace(recipe, arms={**recipe.arms, "bits-5": fewer})
    jobs = {arm: Job(recipe, arm, tmp_path) for arm in recipe.arms}
    asked = {arm: TRAINERS[framework].build_command(job, "m").environment.get(VARIABLE) for arm, job in jobs.items()}
    assert asked == {"bf16": None, "fp16": None, "bits-5": "5"}


def test_the_quickstart_is_launched_with_the_real_toy_task_and_platform(tmp_path: Path) -> None:
    task = ToyTask(tmp_path / "world", {})
    command = TRAINERS["verl"].build_command(Job(load(find("quickstart")), "bf16", tmp_path))
    values = dict(o.lstrip("+").split("=", 1) for o in command.arguments[3:])
    assert values["data.train_files"] == str(task.train)
    assert values["reward.custom_reward_function.path"] == str(task.reward)
    assert values["trainer.device"] == "cpu"
    assert values["precision@_global_"] == "bf16"
    assert command.total_steps is not None


@pytest.mark.parametrize(
    ("metric", "allowed"),
    [
        ("headline.prob_ratio", "k3_kl_ratio"),
        ("headline", "one of prob_diff_ratio"),
        ("arms.fp8.steps", "one of bf16, fp16 there"),
        ("arms.fp16.status", "the path of a number"),
    ],
)
def test_a_metric_that_no_report_has_is_refused_before_a_run(write_recipe: Write, metric: str, allowed: str) -> None:
    path = write_recipe(("headline.prob_diff_ratio", metric))
    assert load(path).expected, "a run that was made is still read"
    with raises_code("unknown-metric", f"metric='{metric}'", allowed, "next step"):
        plan.make_plan(path, path.parent)


@pytest.mark.parametrize("metric", ["arms.fp16.offline.sequence_kl", "to_reward.ratio.steps", "arms.bf16.mean.k3_kl"])
def test_what_only_a_run_can_tell_may_be_expected(write_recipe: Write, metric: str) -> None:
    path = write_recipe(("headline.prob_diff_ratio", metric))
    plan.make_plan(path, path.parent)
