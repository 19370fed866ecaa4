"""The parameters of a mergekit YAML: what a method takes, and what holds for a tensor and model.

A parameter is looked up under the model, then under its slice, then at the top; at each level the
first rule that fits the tensor counts.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from personality_vector.checkpoint import kind
from personality_vector.delta import block_of
from personality_vector.errors import RecipeError, some
from personality_vector.merging.mergekit.recipe import MergekitRecipe, Rule, Scalar
from personality_vector.merging.summands import depths_of

Level = Mapping[str, tuple[Rule, ...]]
"""Parameters as they are given at one place of the file."""

Scope = Literal["shared", "input", "non_base"]
"""Who has a value of a parameter: all models together, each, or each but the base."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a merge method.

    Attributes:
        name: In the YAML.
        default: Its value where none is given; ``None``: it has to be given.
        scope: ``shared`` by all models, or one for each ``input``, or for each but the base.
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
            Parameter("weight", scope="non_base"),
            Parameter("density", 1.0, "non_base"),
            *([Parameter(*own, "non_base")] if own else []),
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
class Region:
    """Some consecutive layers of the output.

    Attributes:
        where: Its place in the YAML, for messages.
        models: The models that it is made of, in order, with the parameters of each.
        parameters: The parameters of the slice.
        layers: The first layer and the one after the last; ``None`` stands for all layers.
    """

    where: str
    models: Mapping[str, Level]
    parameters: Level = field(default_factory=dict)
    layers: tuple[int, int] | None = None


def regions_of(recipe: MergekitRecipe, names: Sequence[str]) -> list[Region]:
    """Return the slices of a recipe; its models are one slice of every layer.

    Raises:
        RecipeError: A slice takes layers from elsewhere or leaves some out.
    """
    if recipe.slices:
        return _slices(recipe, depths_of(names))
    models = {one.model: one.parameters for one in recipe.models}
    if len(models) < len(recipe.models):
        raise RecipeError("models: the same model is given twice")
    if recipe.base_model:
        models.setdefault(recipe.base_model, {})
    return [Region("models", models)]


def _slices(recipe: MergekitRecipe, depths: Mapping[str, int]) -> list[Region]:
    if len(depths) != 1:
        raise RecipeError(
            "slices: the model has no layers, or several stacks of them; give models instead"
        )
    (depth,) = depths.values()
    at, found = 0, []
    for number, part in enumerate(recipe.slices):
        where = f"slices.{number}"
        if part.base_model not in (None, recipe.base_model):
            raise RecipeError(f"{where}.base_model: give one base_model for the whole merge")
        layers = part.sources[0].layer_range
        for source in part.sources:
            if source.layer_range != (at, layers[1]) or layers[1] <= at:
                raise RecipeError(
                    f"{where}: takes layers {list(source.layer_range)} of {source.model} where "
                    f"layer {at} comes next; layers are merged in place here, not moved or repeated"
                )
        models = {one.model: one.parameters for one in part.sources}
        if len(models) < len(part.sources):
            raise RecipeError(f"{where}: the same model is given twice")
        found.append(Region(where, models, part.parameters, layers))
        at = layers[1]
    if at != depth:
        raise RecipeError(f"slices: end at layer {at}, the model at {depth}; none can be dropped")
    return found


def place(name: str, regions: Sequence[Region], depths: Mapping[str, int]) -> tuple[Region, float]:
    """Return the region of a tensor, and where it lies there: 0 the first layer, 1 the last."""
    block = block_of(name)
    if block is None:
        return regions[0 if kind(name) == "embeddings" else -1], 0.0
    stack, layer, _ = block
    # Slices ascend and leave no layer out.
    region = next(one for one in regions if one.layers is None or layer < one.layers[1])
    first, end = region.layers or (0, depths[stack])
    return region, (layer - first) / (end - first - 1) if end - first > 1 else 1.0


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
            parameter = _known(f"{where}: {recipe.merge_method}", name, known, of_model=of_model)
            for rule in rules:
                _check_rule(f"{where}.{name}", parameter, rule, names)
    shared, of_base = ([p for p in parameters if p.scope == one] for one in ("shared", "input"))
    of_others = [p for p in parameters if p.scope != "shared"]
    depths, found = depths_of(names), {}
    for name in names:
        region, share = place(name, regions, depths)
        common = (region.parameters, recipe.parameters)
        of = {
            model: _found(
                of_base if model == recipe.base_model else of_others,
                (own, *common),
                name,
                share,
                model,
            )
            for model, own in region.models.items()
        }
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
