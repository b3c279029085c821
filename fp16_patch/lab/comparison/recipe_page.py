# SPDX-License-Identifier: Apache-2.0
"""Render a recipe as Markdown, for ``recipes show`` and the docs: what it reproduces, the loss, the sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fp16_patch import text_table
from fp16_patch.lab.loading.load import load
from fp16_patch.lab.recipes.algorithms import Definition, algorithms
from fp16_patch.lab.recipes.hyperparameters import NAMES, SOURCES, Setting
from fp16_patch.lab.recipes.schema import Arm, Published, Recipe, Toy
from fp16_patch.lab.trainers import TRAINERS

LIST_HEADER = ("recipe", "reproduces", "algorithm", "frameworks", "hardware", "BF16", "FP16")


def list_row(recipe: Recipe) -> tuple[str, ...]:
    """Return the row under :data:`LIST_HEADER`. The last two are the first published numbers of each precision."""
    first_arm = {arm.precision: name for name, arm in reversed(recipe.arms.items())}
    shown = [recipe.published.get(first_arm.get(precision, ""), ()) for precision in ("bf16", "fp16")]
    return (
        recipe.name,
        recipe.reproduces.where,
        ", ".join(dict.fromkeys(_algorithm_name(recipe, arm) for arm in recipe.arms.values())),
        ", ".join(recipe.frameworks),
        recipe.hardware.about or f"{recipe.hardware.ranks} ranks",
        *(f"{numbers[0].what} {_number(numbers[0])}" if numbers else "-" for numbers in shown),
    )


def render_recipe(path: Path, scale: str | None = None) -> str:
    """Return the recipe with its shared settings filled in, at one scale or by default with all of them."""
    commands = "\n".join(_commands(load(path), scale))
    return "\n\n".join([*_sections(load(path, scale)), f"```bash\n{commands}\n```"]) + "\n"


def render_sources() -> str:
    """Return a table of what the names of sources mean."""
    return text_table.markdown(("source", "is"), list(SOURCES.items()))


def _sections(recipe: Recipe) -> Iterator[str]:
    data = recipe.data
    yield f"## {recipe.name}"
    yield f"{recipe.title}. {recipe.reproduces.what} ({recipe.reproduces.where}; source: {recipe.reproduces.source})"
    facts = [
        ("model", _join(recipe.model.path, recipe.model.about)),
        ("data", _join(f"{data.train}, evaluated on {data.val}", data.about)),
        ("where it is missing", data.fetch),
        ("hardware", recipe.hardware.about),
        ("toy scale", recipe.toy.about if recipe.toy else ""),
        ("frameworks", _frameworks(recipe)),
    ]
    yield "\n".join(f"- {name}: {value}" for name, value in facts if value)
    if recipe.hyperparameters:
        yield "\n\n".join(_loss(name, algorithms()[name], recipe) for name in _algorithms(recipe))
    yield text_table.markdown(("arm", "trainer", "rollout", "algorithm", "the paper shows"), list(_arms(recipe)))
    if recipe.hyperparameters:
        header = ("hyperparameter", "value", "source", "note", *(["toy"] if recipe.toy else []))
        yield text_table.markdown(header, list(_settings(recipe)))
    else:
        yield "Written out in the framework's own options: " + f"`recipes/{recipe.name}.yaml`."


def _frameworks(recipe: Recipe) -> str:
    has = list(recipe.frameworks)
    why = {
        f"not on {framework}: {definition.not_on[framework]}"
        for framework in TRAINERS
        for definition in (algorithms()[name] for name in _algorithms(recipe))
        if framework not in has and framework in definition.not_on
    }
    if recipe.verl and recipe.verl.strategy:
        has[has.index("verl")] += f" ({recipe.verl.strategy})"
    return "; ".join([", ".join(has), *sorted(why)])


def _loss(name: str, definition: Definition, recipe: Recipe) -> str:
    formula = f"**{name}**: {definition.about}.\n\n```\nA    = {definition.advantage}\nloss = {definition.loss}\n```"
    otherwise = [f"{why}." for framework, why in definition.otherwise_on.items() if framework in recipe.frameworks]
    return "\n\n".join([formula, *otherwise])


def _arms(recipe: Recipe) -> Iterator[tuple[str, ...]]:
    for name, arm in recipe.arms.items():
        shown = "; ".join(map(_published, recipe.published.get(name, ()))) or "-"
        bits = "" if arm.rollout_significand is None else f", {arm.rollout_significand} bits of significand"
        yield name, arm.precision, (arm.rollout or arm.precision) + bits, _algorithm_name(recipe, arm), shown


def _settings(recipe: Recipe) -> Iterator[tuple[str, ...]]:
    """Yield the hyperparameters that some arm's algorithm reads. An arm's own value is marked with its name."""
    needed = {name for algorithm in _algorithms(recipe) for name in algorithms()[algorithm].needs}
    all_needed = {name for definition in algorithms().values() for name in definition.needs}
    unused, toy_values = _unused(recipe, recipe), {}
    if recipe.toy:
        toy_values = {name: str(setting.value) for name, setting in recipe.toy.hyperparameters.items()}
        toy_values |= dict.fromkeys(_unused(recipe.toy, recipe), "none")
    groups: list[tuple[str, dict[str, Setting]]] = [("", recipe.hyperparameters)]
    groups += [(f" ({arm})", recipe.arms[arm].hyperparameters) for arm in recipe.arms]
    for suffix, settings in groups:
        for name, setting in settings.items():
            if name in needed or name not in all_needed:
                lacking = [TRAINERS[framework].lacks.get(name, "") for framework in recipe.frameworks]
                note = "; ".join(filter(None, [setting.note, *lacking]))
                row = (name + suffix, "none" if name in unused else str(setting.value), setting.source, note)
                yield (*row, toy_values.get(name, "the same")) if recipe.toy else row


def _unused(sections: Recipe | Toy, recipe: Recipe) -> list[str]:
    """Return the evaluation hyperparameters if the options of this scale turn evaluation off."""
    options = [
        getattr(section, trainer.options_key).get(trainer.eval_interval)
        for framework, trainer in TRAINERS.items()
        if framework in recipe.frameworks and (section := getattr(sections, framework))
    ]
    return [name for name in NAMES if name.startswith("eval_")] if -1 in options else []


def _commands(recipe: Recipe, scale: str | None) -> Iterator[str]:
    run = f"fp16-patch recipes run {recipe.name}"
    for framework in recipe.frameworks:
        chosen = f" --framework {framework}" if framework != recipe.frameworks[0] else ""
        if scale != "toy" or not recipe.toy:
            yield run + chosen
        if scale != "paper" and recipe.toy:
            yield f"{run}{chosen} --scale toy"


def _algorithms(recipe: Recipe) -> Sequence[str]:
    found = dict.fromkeys(_algorithm_name(recipe, arm) for arm in recipe.arms.values())
    return [name for name in found if recipe.hyperparameters and name in algorithms()]


def _algorithm_name(recipe: Recipe, arm: Arm) -> str:
    return arm.algorithm or recipe.algorithm.name


def _published(number: Published) -> str:
    return _join(f"{number.what} {_number(number)} ({number.source})", number.note, ", ")


def _number(number: Published) -> str:
    return f"{number.value:g} ±{number.tolerance:g}" + (f" @{number.step}" if number.step is not None else "")


def _join(text: str, more: str, by: str = ": ") -> str:
    return f"{text}{by}{more}" if more else text
