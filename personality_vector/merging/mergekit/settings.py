"""The parameters of a mergekit YAML: what a method takes, and what holds for a tensor and model.

A parameter is looked up under the model, then under its slice, then at the top; at each level the
first rule that fits the tensor counts.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from personality_vector.errors import RecipeError, some
from personality_vector.merging.mergekit.models import Level, Region, place
from personality_vector.merging.mergekit.recipe import MergekitRecipe, Rule, Scalar
from personality_vector.merging.summands import depths_of

Scope = Literal["shared", "model", "tuned"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a merge method.

    Attributes:
        name: In the YAML.
        default: Its value where none is given; ``None``: it has to be given.
        scope: ``shared`` by all models; of each ``model``; of each but the base (``tuned``).
        kind: What it takes.
        optional: It may be left out, though it has no default.
    """

    name: str
    default: Scalar | None = None
    scope: Scope = "shared"
    kind: Literal["number", "truth"] = "number"
    optional: bool = False


Trim = Literal["nothing", "magnitude", "outliers", "random", "ranked"]


@dataclass(frozen=True, slots=True)
class Convention:
    """One of the eight methods: what is kept of a delta, whether signs are elected, defaults."""

    trim: Trim
    elects: bool
    normalize: bool
    rescale: bool

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """What the method takes, with mergekit's defaults."""
        own = {"outliers": ("gamma", 0.01), "ranked": ("epsilon", 0.15)}.get(self.trim)
        return (
            Parameter("normalize", self.normalize, kind="truth"),
            Parameter("rescale", self.rescale, kind="truth"),
            Parameter("int8_mask", default=False, kind="truth"),
            Parameter("lambda", 1.0),
            Parameter("weight", scope="tuned"),
            Parameter("density", 1.0, "tuned"),
            *([Parameter(*own, "tuned")] if own else []),
        )


CONVENTIONS: Mapping[str, Convention] = {
    "task_arithmetic": Convention("nothing", elects=False, normalize=False, rescale=False),
    "ties": Convention("magnitude", elects=True, normalize=True, rescale=False),
    "dare_linear": Convention("random", elects=False, normalize=False, rescale=True),
    "dare_ties": Convention("random", elects=True, normalize=False, rescale=True),
    "breadcrumbs": Convention("outliers", elects=False, normalize=False, rescale=False),
    "breadcrumbs_ties": Convention("outliers", elects=True, normalize=False, rescale=False),
    "della": Convention("ranked", elects=True, normalize=True, rescale=True),
    "della_linear": Convention("ranked", elects=False, normalize=False, rescale=True),
}


@dataclass(frozen=True, slots=True)
class Values:
    """What holds for one tensor: shared parameters, and those of each model that takes part."""

    shared: Mapping[str, Scalar]
    of: Mapping[str, Mapping[str, Scalar]]


def resolve(
    recipe: MergekitRecipe,
    regions: Sequence[Region],
    parameters: Sequence[Parameter],
    names: Sequence[str],
) -> dict[str, Values]:
    """Return the values for every tensor, after checking every parameter that is given.

    Raises:
        RecipeError: A parameter is unknown, missing, of the wrong kind, or at a level where
            mergekit would ignore it; or no tensor name contains a filter.
    """
    known = {parameter.name: parameter for parameter in parameters}
    for where, level, of_model in levels_of(recipe, regions):
        for name, rules in level.items():
            method = f"{where}: {recipe.merge_method}"
            parameter = _known(method, name, known, of_model=of_model)
            for rule in rules:
                _check_rule(f"{where}.{name}", parameter, rule, names)
    depths, found = depths_of(names), {}
    shared = [parameter for parameter in parameters if parameter.scope == "shared"]
    for name in names:
        region, share = place(name, regions, depths)
        common, of = (region.parameters, recipe.parameters), {}
        for model, own in region.models.items():
            scopes = ("model",) if model == recipe.base_model else ("model", "tuned")
            its = [parameter for parameter in parameters if parameter.scope in scopes]
            of[model] = _found(its, (own, *common), name, share, model)
        found[name] = Values(_found(shared, common, name, share, region.where), of)
    return found


def _found(
    parameters: Sequence[Parameter], levels: Sequence[Level], name: str, share: float, where: str
) -> dict[str, Scalar]:
    table = {}
    for parameter in parameters:
        rules = (rule for level in levels for rule in level.get(parameter.name, ()))
        rule = next((rule for rule in rules if (rule.filter or "") in name), None)
        value = interpolated(rule.points, share) if rule else parameter.default
        if value is not None:
            table[parameter.name] = value
        elif not parameter.optional:
            raise RecipeError(f"{where}: has no {parameter.name} for {name}")
    return table


def interpolated(points: Sequence[Scalar], share: float) -> Scalar:
    """Return the value at ``share`` of the way from the first point to the last.

    >>> interpolated((0.0, 1.0, 0.0), 0.25)
    0.5
    """
    along = share * (len(points) - 1)
    below = int(along)
    above = min(below + 1, len(points) - 1)
    if len(points) == 1 or isinstance(points[0], bool):
        return points[below]
    return (1.0 - (along - below)) * points[below] + (along - below) * points[above]


def levels_of(
    recipe: MergekitRecipe, regions: Sequence[Region]
) -> Iterator[tuple[str, Level, bool]]:
    """Yield every level of parameters with its place in the YAML, and whether it is a model's."""
    yield "parameters", recipe.parameters, False
    for region in regions:
        yield f"{region.where}.parameters", region.parameters, False
        inside = "" if region.where == "models" else ".sources"
        for number, own in enumerate(region.models.values()):
            yield f"{region.where}{inside}.{number}.parameters", own, True


def _known(where: str, name: str, known: Mapping[str, Parameter], *, of_model: bool) -> Parameter:
    """Return a parameter by its name, if it may be given there."""
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(known)}"
        raise RecipeError(f"{where} has no parameter {name!r}; {hint}")
    if of_model and known[name].scope == "shared":
        raise RecipeError(
            f"{where} shares {name} among all models, and mergekit would ignore it here; "
            "move it to the parameters at the top"
        )
    return known[name]


def _check_rule(where: str, parameter: Parameter, rule: Rule, names: Sequence[str]) -> None:
    for point in rule.points:
        if isinstance(point, bool) != (parameter.kind == "truth"):
            wanted = "true or false" if parameter.kind == "truth" else "a number"
            raise RecipeError(f"{where}: give {wanted}, not {point!r}")
        if parameter.name in ("density", "gamma", "epsilon") and not 0 <= point <= 1:
            raise RecipeError(f"{where}: a share lies in [0, 1], {point!r} does not")
    if not any((rule.filter or "") in name for name in names):
        raise RecipeError(
            f"{where}: no tensor name contains the filter {rule.filter!r}; there are names such as "
            f"{some(names, 2)}"
        )


def summary(rows: Iterable[Mapping[str, Scalar]]) -> dict[str, Scalar | str]:
    """Return each parameter with its value, or ``by tensor`` where it differs between rows."""
    table: dict[str, Scalar | str] = {}
    for row in rows:
        for name, value in row.items():
            table[name] = value if table.get(name, value) == value else "by tensor"
    return table


def summary_of(values: Mapping[str, Values], model: str) -> dict[str, Scalar | str | None]:
    """Return the parameters of a model; its weight is what recipes of ours call alpha."""
    own = summary(found.of[model] for found in values.values() if model in found.of)
    return {"alpha": own.pop("weight", None), **own}
