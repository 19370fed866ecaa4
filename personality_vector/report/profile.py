"""The files of a profile: its record, the recipe of its merge, and the curve where it falls short.

The figure shows how far the shifts of the target's traits go along the best alphas.
"""

import json
from pathlib import Path

import yaml
from matplotlib.figure import Figure

from personality_vector.files import AtomicDirectory
from personality_vector.manifest import write_manifest
from personality_vector.report.figures import canvas, legend, line, save_figure
from personality_vector.study.profile.result import Profile


def save_profile(profile: Profile, out: Path, *, force: bool) -> None:
    """Write ``profile.json``, ``merge.yaml``, a manifest and, if there is a curve, its figure.

    The folder appears whole, or not at all.

    Args:
        profile: What to write.
        out: Must not exist, unless ``force``.
        force: Replace a result that this tool wrote.

    Raises:
        OutputExistsError: ``out`` exists.
    """
    record = profile.record() | {"made_from": profile.made_from}
    with AtomicDirectory(out, kind="profile", force=force) as partial:
        text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (partial / "profile.json").write_text(text, encoding="utf-8")
        (partial / "merge.yaml").write_text(_merge_recipe(profile), encoding="utf-8")
        if profile.curve:
            save_figure(_curve_figure(profile), partial, "curve")
        found = {key: record[key] for key in ("reached", "target", "alphas")}
        write_manifest(partial, "profile", {**profile.made_from, "profile": found})


def _merge_recipe(profile: Profile) -> str:
    content = profile.recipe.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return f"# {' '.join(profile.verdict().split())}.\n{text}"


def _curve_figure(profile: Profile) -> Figure:
    """Draw the shift of every trait of the target along the best alphas, with its target."""
    figure = canvas(1, 1)
    figure.set_size_inches(5.2, 3.8)
    axes = figure.subplots()
    axes.set(xlabel="times the best alphas", ylabel=f"shift against the base\n({profile.unit})")
    times = [0.0, *(one for one, _ in profile.curve)]
    for index, (trait, wanted) in enumerate(profile.target.items()):
        look, shifts = line(index), [found[trait] for _, found in profile.curve]
        axes.plot(times, [0.0, *(one.value for one in shifts)], label=trait, **look)
        low, high = [0.0, *(one.low for one in shifts)], [0.0, *(one.high for one in shifts)]
        axes.fill_between(times, low, high, color=look["color"], alpha=0.12, linewidth=0)
        axes.axhline(wanted, color=look["color"], linestyle="--", linewidth=0.9)
    axes.axvline(1.0, color="grey", linewidth=0.8, alpha=0.7)
    legend(figure)
    return figure
