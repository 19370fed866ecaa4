"""What a comparison found: interventions where they are equal in a number, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from personality_vector.numeric.statistics import (
    Interval,
    bootstrapped,
    mean_difference,
    mean_of_seeds,
)
from personality_vector.study.curves import DosePoint, beside, reach, sign_of
from personality_vector.study.design import BASE
from personality_vector.study.numbers import Number, numbers_of, short_names
from personality_vector.study.run import Run
from personality_vector.traits import Pole

Place = tuple[str, float]
"""An intervention at a strength."""

Cells = Mapping[Place, Float[ndarray, "items seeds samples"]]
"""The values of one number, item by item; NaN where there is none."""

_BASE: Place = (BASE, 0.0)
_ITEM, _ZERO = ["item", "seed", "sample"], 1e-6


class Column(NamedTuple):
    """A column of a table at matched strengths.

    Attributes:
        name: Its heading.
        cells: The values of a number, in the direction that counts.
        is_shift: Whether the base's are taken off.
    """

    name: str
    cells: Cells
    is_shift: bool

    def at(self, place: Place) -> Interval:
        """Return the number at a place."""
        if place not in self.cells or (self.is_shift and _BASE not in self.cells):
            return Interval(np.nan, np.nan, np.nan)
        return mean_difference(self.cells[place], self.cells[_BASE] if self.is_shift else None)

    def value(self, place: Place) -> float:
        """Return the number at a place, without an interval."""
        if place not in self.cells or (self.is_shift and _BASE not in self.cells):
            return np.nan
        return mean_of_seeds(self.cells[place], self.cells[_BASE] if self.is_shift else None)

    def between(self, place: Place, other: Place) -> Interval:
        """Return the number at one place minus that at another, over what both have."""
        if place not in self.cells or other not in self.cells:
            return Interval(np.nan, np.nan, np.nan)
        one, two = self.cells[place], self.cells[other]
        is_paired = np.isfinite(one) & np.isfinite(two)
        return mean_difference(*(np.where(is_paired, each, np.nan) for each in (one, two)))


@dataclass(frozen=True)
class Comparison:
    """The results of a run that has a pole, from its store; every frame is read once."""

    run: Run

    @cached_property
    def pole(self) -> Pole:
        """The pole that interventions were to move towards."""
        return Pole.parse(self.run["pole"])

    @cached_property
    def effect(self) -> str:
        """Name of the likelihood whose shift is the effect."""
        return str(self.run["effect"])

    @cached_property
    def arms(self) -> dict[str, list[float]]:
        """Intervention to the strengths of the grid."""
        return dict(self.run["arms"])

    @cached_property
    def axes(self) -> dict[str, Any]:
        """The matched numbers, and the targets of those for which the recipe gives any."""
        noted = self.run["axes"] or [{"number": self.effect, "targets": None}]
        return {axis["number"]: axis["targets"] for axis in noted}

    @cached_property
    def matches(self) -> pd.DataFrame:
        """Which strength has which target. Columns: ``number, intervention, target, strength``."""
        # A run of an earlier version was matched in its effect alone.
        rows = [row if len(row) == 4 else (self.effect, *row) for row in self.run["matches"]]
        return pd.DataFrame(rows, columns=["number", "intervention", "target", "strength"]).astype(
            {"target": "float64", "strength": "float64"}
        )

    @cached_property
    def _readings(self) -> pd.DataFrame:
        return self.run.readings().dropna(subset="value")

    @cached_property
    def _answers(self) -> pd.DataFrame:
        return self.run.answers().rename(columns={"score": "value"})

    @cached_property
    def _observations(self) -> pd.DataFrame:
        return in_pairs(self.run.observations()).assign(sample=0)

    @cached_property
    def effects(self) -> dict[str, Number]:
        """The numbers of the pole's trait, by name."""
        own = self._readings[self._readings["trait"] == self.pole.trait]
        pairs = set(zip(own["measure"], own["judge"], strict=True))
        found = numbers_of(self.run, of_traits=True)
        return {one.name: one for one in found if (one.measure, one.judge) in pairs}

    @cached_property
    def costs(self) -> dict[str, Number]:
        """The numbers of no trait, by name."""
        return {one.name: one for one in numbers_of(self.run, of_traits=False)}

    @cached_property
    def firsts(self) -> dict[str, Number]:
        """The numbers that stand for what an edit costs.

        The first of each measure that is better low or high, and those that were matched.
        """
        firsts = {one.measure.partition(".")[0]: name for name, one in [*self.costs.items()][::-1]}
        return {
            name: one
            for name, one in self.costs.items()
            if (name in firsts.values() and one.better in ("low", "high")) or name in self.axes
        }

    def numbers(self, name: str) -> tuple[Number, str, int]:
        """Return a number of the pole's trait or of no trait, its trait, and the direction."""
        if name in self.effects:
            return self.effects[name], self.pole.trait, self.pole.sign
        return self.costs[name], "", sign_of(self.costs[name].better, None)

    def cells(self, number: Number, trait: str, sign: int = 1) -> Cells:
        """Return the values of a number at every place, times ``sign``.

        They are items where all cells have them: scores, or observations. Otherwise a cell has a
        single item, its reading.
        """
        keys = ["intervention", "strength", "seed"]
        read = _of(self._readings, number, trait)
        own = _of(self._answers if number.judge else self._observations, number, trait)
        if not _keys(read, keys) <= _keys(own, keys):
            own = read.assign(item="", sample=0)
        codes = [pd.factorize(own[key])[0] for key in _ITEM]
        shape = [1 + max(code, default=-1) for code in codes]
        cells = {}
        for place, rows in own.groupby(keys[:2]).indices.items():
            cells[place] = np.full(shape, np.nan)
            cells[place][tuple(code[rows] for code in codes)] = sign * own["value"].to_numpy()[rows]
        return cells

    @cached_property
    def off_target(self) -> Column:
        """The mean absolute shift of the other traits' likelihood, of each seed."""
        others = set(_of(self._readings, self.effects[self.effect])["trait"]) - {self.pole.trait}
        found: dict[Place, list[Any]] = {}
        for trait in others:
            cells = self.cells(self.effects[self.effect], trait)
            for place in cells.keys() - {_BASE} if _BASE in cells else ():
                moved = cells[place].mean((0, 2)) - cells[_BASE].mean((0, 2))
                found.setdefault(place, []).append(abs(moved))
        mean = {place: np.mean(moved, axis=0)[None, :, None] for place, moved in found.items()}
        return Column("off_target", mean, is_shift=False)

    def column(self, name: str) -> Column:
        """Return how far a number moves from the base, in the direction that counts."""
        return Column(name, self.cells(*self.numbers(name)), is_shift=True)

    def has_items(self, name: str) -> bool:
        """Return whether the store holds what a number is the mean of."""
        return any(len(cell) > 1 for cell in self.column(name).cells.values())

    def is_zero(self, cost: Number) -> bool:
        """Return whether a number is 0 for the base."""
        own = _of(self._readings, cost, "")
        return bool((own[own["intervention"] == BASE]["value"].abs() < _ZERO).all())

    def columns(self, name: str) -> list[Column]:
        """Return what is shown where interventions are equal in a number, which comes first."""
        own = self.numbers(name)[0]
        judges = [one.judge for one in self.effects.values()]
        effects = {
            one.judge if one.judge and judges.count(one.judge) == 1 else label: one
            for label, one in self.effects.items()
            if one is not own
        }
        pole = self.pole
        short = short_names([one.measure for one in self.costs.values()])
        return [
            self.column(name)._replace(name="shift"),
            *(
                Column(f"{label} shift", self.cells(one, pole.trait, pole.sign), is_shift=True)
                for label, one in effects.items()
            ),
            self.off_target,
            *(
                Column(short[one.measure], self.cells(one, ""), is_shift=False)
                for one in self.costs.values()
            ),
        ]

    def curves(self, name: str) -> dict[str, list[DosePoint]]:
        """Return, per intervention, how far each strength of the grid moves a number.

        A number other than the effect has the points of that direction of strength which moves the
        effect furthest towards the pole.
        """
        column = self.column(name)
        found = {
            label: [
                DosePoint(strength, value)
                for strength in strengths
                if np.isfinite(value := column.value((label, strength)))
            ]
            for label, strengths in self.arms.items()
        }
        if name == self.effect:
            return found
        effect = self.curves(self.effect)
        return {label: beside(effect[label], curve) for label, curve in found.items()}

    def matched_on(self, name: str) -> pd.DataFrame:
        """Return target, intervention and strength of one axis, in the order of the tables."""
        own = self.matches[self.matches["number"] == name]
        own = own[["target", "intervention", "strength"]]
        return own.sort_values(["target", "intervention"], ignore_index=True)

    def common(self, name: str) -> pd.DataFrame:
        """Return the matches at that target which most interventions have, the largest of those."""
        found = self.matched_on(name).dropna()
        sizes = found.groupby("target").size()
        return found[found["target"] == sizes[sizes == sizes.max()].index.max()]


def in_pairs(observations: pd.DataFrame) -> pd.DataFrame:
    """Return observations in which a statement of the high pole and one of the low are one item.

    Its value is the mean of both, so that a mean over items stays what it was. They are then drawn
    together: what an edit does to every statement alike, which their difference does not see, does
    not widen an interval. Where the poles have different numbers of statements, nothing changes.
    """
    number = observations["item"].str.extract(r":(?:high|low) (\d+)$", expand=False)
    keys = [name for name in observations.columns if name not in ("item", "value")]
    named = [observations[key] for key in keys]
    has_partner = observations.groupby([*named, number])["value"].transform("size") == 2
    is_even = has_partner.groupby([observations["measure"], observations["trait"]]).transform("all")
    items = observations["item"].mask(is_even, number)
    means = observations.assign(item=items).groupby([*keys, "item"], sort=False)["value"].mean()
    return means.reset_index()


def _of(frame: pd.DataFrame, number: Number, trait: str | None = None) -> pd.DataFrame:
    found = frame[frame["measure"] == number.measure]
    if "judge" in found:
        found = found[found["judge"] == number.judge]
    return found if trait is None else found[found["trait"] == trait]


def _keys(frame: pd.DataFrame, names: list[str]) -> set[Any]:
    return set(frame[names].itertuples(index=False, name=None))


def at_matched(comparison: Comparison, name: str) -> pd.DataFrame:
    """Return one row per target and intervention: what it does and costs where all are equal.

    Columns: ``target, intervention, strength, shift`` (of the number that is matched), ``reach``
    (the largest shift of its grid before that turns back), the shift of every other number of the
    pole's trait, ``off_target`` (mean absolute shift of the likelihood of the other traits), and
    every number of no trait as measured. ``X low`` and ``X high`` are the 95 % interval of ``X``:
    over items and seeds where the store holds items, and otherwise over seeds. Where no strength
    moves an intervention by the target, all but its reach is NaN.
    """
    table, columns = comparison.matched_on(name), comparison.columns(name)
    reaches = {label: reach(curve) for label, curve in comparison.curves(name).items()}
    places = _places(table)
    found = _joined(table, {one.name: [one.at(place) for place in places] for one in columns})
    after = next((i for i, column in enumerate(found) if str(column) == "shift high"), 3)
    found.insert(after + 1, "reach", [reaches[label] for label in table["intervention"]])
    return found


def _joined(table: pd.DataFrame, columns: Mapping[str, Sequence[Interval]]) -> pd.DataFrame:
    """Return a table with numbers, each with its interval where any row has one."""
    found: dict[str, Any] = {}
    for name, intervals in columns.items():
        frame = pd.DataFrame(intervals, columns=["", " low", " high"], dtype=float)
        kept = frame if frame[" low"].notna().any() else frame[[""]]
        found |= {f"{name}{ending}": kept[ending].to_numpy() for ending in kept}
    return pd.concat([table, pd.DataFrame(found, index=table.index)], axis=1)


def differences(comparison: Comparison, name: str) -> pd.DataFrame:
    """Return one row per target and intervention: its numbers minus those of the first one.

    Item by item, sample by sample and seed by seed, over what both have, with 95 % intervals. Of
    the numbers of no trait, those are shown that are better low or high.
    """
    table = comparison.matched_on(name).dropna()
    first = next((label for label in comparison.arms if label in set(table["intervention"])), "")
    strengths = table[table["intervention"] == first].set_index("target")["strength"]
    others = table[(table["intervention"] != first) & table["target"].isin(strengths.index)]
    pairs = [
        ((row.intervention, row.strength), (first, strengths[row.target]))
        for row in others.itertuples(index=False)
    ]
    neutral = [one.measure for one in comparison.costs.values() if one.better == "none"]
    short = short_names([one.measure for one in comparison.costs.values()])
    hidden = {short[measure] for measure in neutral}
    found = {
        one.name: [one.between(*pair) for pair in pairs]
        for one in comparison.columns(name)
        if one.name not in hidden
    }
    rows = others.assign(minus=first).drop(columns="strength").reset_index(drop=True)
    return _joined(rows, found)


def cross_talk(comparison: Comparison) -> pd.DataFrame:
    """Return how far each intervention moves every trait at equal effect: rows of a matrix.

    One row per axis, intervention and number of traits, at the largest target that most
    interventions have. Shifts are towards the high pole, with 95 % intervals. The rows of a
    comparison for each trait make the whole matrix.
    """
    tables = []
    for axis in comparison.axes:
        common = comparison.common(axis)
        places = _places(common)
        for name, number in comparison.effects.items():
            traits = _of(comparison._readings, number)["trait"].unique()
            columns = [Column(t, comparison.cells(number, t), is_shift=True) for t in traits]
            rows = common.assign(number=name, pole=str(comparison.pole), matched=axis)
            rows = rows[["pole", "matched", "target", "intervention", "number"]]
            found = {one.name: [one.at(place) for place in places] for one in columns}
            tables.append(_joined(rows.reset_index(drop=True), found))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def fixed_and_broken(comparison: Comparison) -> pd.DataFrame:
    """Return one row per match and task: what it fixed and what it broke, item by item.

    A task is a number of no trait whose items are right, 1, or wrong, 0. Columns: ``matched,
    target, intervention, number, right`` (items and seeds that the base gets right), ``broken``
    (share of those that are wrong now), ``wrong, fixed`` (the same the other way round); shares
    have 95 % intervals over items and seeds.
    """
    tables = []
    for name, number in comparison.costs.items():
        cells = comparison.cells(number, "")
        values = np.concatenate([cell.ravel() for cell in cells.values()] or [np.empty(0)])
        if len(cells.get(_BASE, ())) < 2 or not set(values[np.isfinite(values)]) <= {0.0, 1.0}:
            continue
        table = comparison.matches.dropna().reset_index(drop=True)
        before = cells[_BASE]
        after = [cells.get(place, np.nan * before) for place in _places(table)]
        columns: dict[str, list[Interval]] = {}
        rows = table[["number", "target", "intervention"]].rename(columns={"number": "matched"})
        rows = rows.assign(number=name)
        for was, word, turned in ((1.0, "right", "broken"), (0.0, "wrong", "fixed")):
            known = [np.where((before == was) & np.isfinite(cell), cell, np.nan) for cell in after]
            columns[word] = [Interval(np.isfinite(one).sum(), np.nan, np.nan) for one in known]
            columns[turned] = [_share(abs(one - was)) for one in known]
        tables.append(_joined(rows, columns))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _share(turned: Float[ndarray, "items seeds samples"]) -> Interval:
    """Return the mean over all items and seeds that are known, with its 95 % interval."""
    known = turned[np.isfinite(turned)]
    interval = bootstrapped(turned) or (np.nan, np.nan)
    return Interval(float(known.mean()) if len(known) else np.nan, *interval)


def _places(table: pd.DataFrame) -> list[Place]:
    return list(zip(table["intervention"], table["strength"], strict=True))
