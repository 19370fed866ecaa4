"""The choice of layer and strength: its evidence against re-statements, and the same twice."""

import json
import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from personality_vector.checkpoint import Checkpoint
from personality_vector.cli.main import run
from personality_vector.data.statements import Statement, read_statements
from personality_vector.errors import (
    BaseMismatchError,
    DataError,
    ModelError,
    OutputExistsError,
    RecipeError,
    TensorMismatchError,
)
from personality_vector.lab import builtin
from personality_vector.measures.likelihood import Likelihood
from personality_vector.numeric.random import generator_for
from personality_vector.report.choice import save_choice
from personality_vector.steering import ALL, Positions, SteeringVector, steered
from personality_vector.steering.activations import Reader
from personality_vector.study.choose.layers import (
    Evidence,
    Separation,
    examine,
    ranked,
    separation,
)
from personality_vector.study.choose.run import Inputs, choose
from personality_vector.study.choose.scan import Choice, CurvePoint, next_shares, swing, usable
from personality_vector.study.recipe import ChooseRecipe
from personality_vector.study.run import Run
from personality_vector.study.worker import Worker
from personality_vector.subject.chat import answered, question
from personality_vector.subject.encoding import encode_chats
from personality_vector.subject.models import load_model, load_tokenizer
from personality_vector.subject.subject import Subject
from personality_vector.traits import Pole

HIGH = Pole("extraversion", "high")
ASKED = "What kind of person are you?"
SAID = {
    "high": ["I love parties", "I talk a lot", "meeting new people", "I am the one who talks"],
    "low": ["I am quiet", "alone again", "I say little at every party", "people are loud"],
}


def chats(level):
    return [answered(question(ASKED), text) for text in SAID[level]]


def random_vector(layers, width=48):
    directions = {
        layer: torch.randn(width, generator=generator_for(0, f"v{layer}")) for layer in layers
    }
    return SteeringVector(directions, "", HIGH, "v", "response_mean", (1, 1))


def gradient(model, tokenizer, layer):
    """Return the gradient of the probe by what is added to every output of a block."""
    push = torch.zeros(model.config.hidden_size, requires_grad=True)
    hook = model.model.layers[layer].register_forward_hook(lambda _m, _a, output: output + push)
    total = torch.zeros(())
    for level, sign in (("high", 1.0), ("low", -1.0)):
        for chat in chats(level):
            found = encode_chats(tokenizer, [chat])
            logits = model(found.input_ids).logits[0, :-1].log_softmax(-1)
            mask = found.response_mask[0, 1:]
            said = logits.gather(1, found.input_ids[0, 1:, None])[mask]
            total = total + sign * said.mean() / len(SAID[level])
    hook.remove()
    return torch.autograd.grad(total, push)[0]


def subject_of(path):
    return Subject(load_model(path), load_tokenizer(path))


def likelihood_of(subject, statements):
    """Return how much likelier the high end of extraversion is."""
    (found,) = Likelihood(statements, ASKED).collect(subject, 0).readings
    return found.value


@pytest.fixture(scope="module")
def loaded(pico):
    return subject_of(pico("llama"))


# Separation


def test_separation_is_that_of_the_textbook():
    draw = generator_for(0, "separation")
    high = (torch.randn(17, generator=draw) + 1).tolist()
    low = torch.randn(23, generator=draw).tolist()
    found = separation(high, low)
    spread = math.sqrt((statistics.variance(high) + statistics.variance(low)) / 2)
    assert found.d_prime == pytest.approx((statistics.fmean(high) - statistics.fmean(low)) / spread)
    assert found.auc == pytest.approx(roc_auc_score([1] * 17 + [0] * 23, high + low))
    mirrored = separation(low, high)
    assert mirrored.d_prime == pytest.approx(-found.d_prime)
    assert mirrored.auc == pytest.approx(1 - found.auc)
    assert mirrored.auc_high == pytest.approx(1 - found.auc_low)


def test_the_interval_is_delongs_by_its_structural_components():
    high, low = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0], [2.0, 6.0, 1.0, 0.0]
    score = {True: 1.0, False: 0.0}
    won = [[0.5 if h == lo else score[h > lo] for lo in low] for h in high]
    of_high = [statistics.fmean(row) for row in won]
    of_low = [statistics.fmean(row[j] for row in won) for j in range(len(low))]
    variance = statistics.variance(of_high) / len(high) + statistics.variance(of_low) / len(low)
    found = separation(high, low)
    area = statistics.fmean(of_high)
    assert found.auc == pytest.approx(area)
    width = 1.96 * math.sqrt(variance) / (area * (1 - area))  # of the log of the odds
    for end, sign in ((found.auc_low, -1), (found.auc_high, 1)):
        assert math.log(end / (1 - end)) == pytest.approx(
            math.log(area / (1 - area)) + sign * width, rel=1e-4
        )


def test_groups_that_do_not_overlap_have_an_area_of_one_without_width():
    found = separation([3.0, 4.0], [1.0, 2.0])
    assert (found.auc, found.auc_low, found.auc_high) == (1.0, 1.0, 1.0)


def test_the_interval_holds_the_true_area_about_95_times_in_100():
    draw = np.random.default_rng(0)
    true = statistics.NormalDist().cdf(1 / math.sqrt(2))
    found = [separation(*draw.normal([[1], [0]], 1, (2, 60)).tolist()) for _ in range(600)]
    covered = sum(one.auc_low <= true <= one.auc_high for one in found) / len(found)
    assert 0.93 <= covered <= 0.98


def test_separation_of_one_member_is_refused():
    with pytest.raises(DataError, match="at least two of each, got 1 and 2"):
        separation([1.0], [0.0, 2.0])


# Evidence


@pytest.mark.parametrize("clause", ["all", "response", "last 2"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_the_slope_is_what_a_small_strength_does_to_the_probe(pico, family, clause):
    subject = subject_of(pico(family))
    positions = Positions.parse(clause)
    vector = random_vector((0, 1), width=subject.model.config.hidden_size)
    statements = [Statement("extraversion", level, t) for level in SAID for t in SAID[level]]
    sides = (chats("high"), chats("low"))

    def probed(layer, strength):
        directions = {layer: vector[layer]}
        with steered(subject.model, directions, strength, positions=positions):
            return likelihood_of(subject, statements)

    for found in examine(subject, vector, (0, 1), *sides, positions, batch_size=3):
        step = 2e-3 * found.unit
        rise = probed(found.layer, step) - probed(found.layer, -step)
        assert found.slope == pytest.approx(rise / (2 * step) * found.unit, rel=0.02, abs=2e-3)


def test_the_slope_is_the_gradient_along_the_vector(loaded):
    vector = random_vector((0, 1, 2))
    sides = (chats("high"), chats("low"))
    for found in examine(loaded, vector, (0, 1, 2), *sides, ALL, 3):
        along = gradient(loaded.model, loaded.tokenizer, found.layer) @ vector[found.layer]
        assert found.slope == pytest.approx(float(along) * found.unit, rel=1e-3)


def test_projections_and_norms_are_those_of_the_blocks_outputs(loaded):
    vector = random_vector((0, 2))
    sides = (chats("high"), chats("low"))
    high, low = (
        Reader(loaded.model, loaded.tokenizer, (0, 2)).pooled(chats(level)) for level in SAID
    )
    for found in examine(loaded, vector, (2, 0), *sides, ALL, batch_size=3):
        unit = vector[found.layer] / vector[found.layer].norm()
        sides = [(rows[found.layer] @ unit).tolist() for rows in (high, low)]
        expected = separation(*sides)
        assert found.separation.auc == expected.auc
        assert found.separation.d_prime == pytest.approx(expected.d_prime, rel=1e-4)
        assert found.vector_norm == pytest.approx(vector.norm(found.layer))
        means = torch.cat([rows[found.layer] for rows in (high, low)]).norm(dim=-1)
        assert 0.5 * means.min() < found.residual_norm < 2 * means.max()


def test_evidence_does_not_depend_on_batches_and_leaves_nothing_behind(loaded):
    model = loaded.model
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    vector = random_vector((0, 1))
    one, many = (
        examine(loaded, vector, (0, 1), chats("high"), chats("low"), ALL, size) for size in (1, 8)
    )
    for a, b in zip(one, many, strict=True):
        assert a.slope == pytest.approx(b.slope, rel=1e-3, abs=1e-5)
        assert a.separation.d_prime == pytest.approx(b.separation.d_prime, rel=1e-3)
    assert all(not block._forward_hooks for block in model.model.layers)
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(before[n], weight) for n, weight in model.named_parameters())


def test_examining_a_layer_without_a_direction_is_refused(loaded):
    with pytest.raises(TensorMismatchError, match="no direction for layer 1"):
        examine(loaded, random_vector((0,)), (1,), chats("high"), chats("low"), ALL)


def evidence(layer, d_prime, slope):
    return Evidence(layer, Separation(d_prime, 0.8, 0.7, 0.9), 10.0, 2.0, slope)


def test_candidates_separate_well_enough_and_lead_to_the_pole():
    found = [
        evidence(0, 2.0, -0.5),  # separates best, leads away
        evidence(1, 0.9, 3.0),  # moves most, separates less than half as well
        evidence(2, 1.0, 0.2),
        evidence(3, 1.5, 0.4),
        evidence(4, 1.8, 0.4),
    ]
    assert [one.layer for one in ranked(found)] == [3, 4, 2]


@pytest.mark.parametrize(("d_prime", "slope"), [(-1.0, 0.5), (1.0, -0.5), (0.0, 0.5)])
def test_a_vector_that_points_elsewhere_is_refused(d_prime, slope):
    with pytest.raises(DataError, match=r"layers \[3\].*check that the pole is"):
        ranked([evidence(3, d_prime, slope)])


# Scanning


def point(share, shift, coherence=1.0, layer=3):
    return CurvePoint(layer, share, 5 * share, shift, 0.1, 0.2, coherence, 1.0, 1.0)


def toy(shift, coherence=lambda _share: 1.0):
    asked = []

    def measure(share):
        asked.append(share)
        return point(share, shift(share), coherence(share))

    return measure, asked


SHARES = (0.1, 0.2, 0.4, 0.8)


def scan(measure, shares, floor):
    """Measure whatever follows from the curve until nothing does."""
    curve = []
    while ahead := next_shares(curve, shares, floor):
        curve += map(measure, ahead)
    return sorted(curve, key=lambda found: found.share)


def test_a_curve_that_stays_coherent_is_measured_to_the_end_of_the_grid():
    measure, asked = toy(math.tanh)
    curve = scan(measure, SHARES, 0.5)
    assert sorted(asked) == [p.share for p in curve] == [*(-s for s in SHARES[::-1]), *SHARES]
    assert usable(curve, 0.5) == curve
    assert swing(curve, 0.5) == pytest.approx(2 * math.tanh(0.8))


def test_a_direction_ends_with_its_first_point_below_the_floor():
    measure, asked = toy(lambda s: s, lambda s: 1 - s if s > 0 else 1 + s / 4)
    curve = scan(measure, SHARES, 0.7)
    assert 0.4 in asked
    assert 0.8 not in asked
    assert [p.share for p in usable(curve, 0.7)] == [-0.8, -0.4, -0.2, -0.1, 0.1, 0.2]


def test_a_direction_ends_where_the_shift_turns_back():
    measure, asked = toy(lambda s: s - 2 * s * abs(s))  # largest at 1/4
    curve = scan(measure, SHARES, 0.5)
    assert set(map(abs, asked)) == {0.1, 0.2, 0.4}
    assert [p.share for p in usable(curve, 0.5)] == [-0.2, -0.1, 0.1, 0.2]


def test_a_direction_that_leads_the_wrong_way_is_not_usable():
    measure, _ = toy(abs)
    curve = scan(measure, SHARES, 0.5)
    assert [p.share for p in usable(curve, 0.5)] == list(SHARES)
    assert swing(curve, 0.5) == 0.8


def test_a_point_beyond_a_bad_one_is_not_usable_even_if_it_is_good():
    curve = [point(0.1, 0.1), point(0.2, 0.2, coherence=0.1), point(0.4, 0.4)]
    assert usable(curve, 0.5) == curve[:1]


@pytest.mark.parametrize("worst", ["fluency", "readable", "variety"])
def test_coherence_is_its_weakest_part(worst):
    assert replace(point(0.1, 0.1), **{worst: 0.25}).coherence == 0.25


def choice(curves, verified):
    layers = [evidence(layer, 1.0, 0.1) for layer in verified]
    return Choice(HIGH, "v", 0.5, layers, verified, curves, "train")


def test_the_layer_is_the_one_whose_usable_range_moves_the_probe_furthest():
    curves = [
        *(point(s, s, layer=1) for s in (-0.2, -0.1, 0.1, 0.2)),
        *(point(s, 3 * s, coherence=1 - 2 * abs(s), layer=4) for s in (-0.4, -0.2, 0.2, 0.4)),
        *(point(s, 9 * s, coherence=0.2, layer=2) for s in (-0.1, 0.1)),
    ]
    found = choice(curves, (1, 4, 2))
    assert (found.layer, found.coefficients) == (4, (-1.0, 1.0))


def test_of_layers_that_move_it_equally_the_best_ranked_is_taken():
    curves = [point(s, s, layer=layer) for layer in (4, 1) for s in (-0.1, 0.1)]
    assert choice(curves, (4, 1)).layer == 4
    assert choice(curves, (1, 4)).layer == 1


def test_a_choice_without_a_usable_strength_is_refused():
    with pytest.raises(DataError, match=r"no strength at layers \[3\].*floor 0.5"):
        choice([point(0.1, 0.1, coherence=0.4)], (3,))


# The whole


@pytest.fixture(scope="module")
def demo():
    return subject_of(builtin("builtin:demo"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, demo):
    """Return a folder with statements, a vector of the embedded model and a recipe."""
    folder = tmp_path_factory.mktemp("choose")
    path, source = builtin("builtin:demo"), builtin("builtin:training/data/big5_statements.jsonl")
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = [line for line in lines if "extraversion" in line or "openness" in line]
    (folder / "statements.jsonl").write_text("".join(rows[::4]), encoding="utf-8")
    sides = [
        [
            answered(question(ASKED), s.text)
            for s in read_statements(source, trait="extraversion", level=level, part="train")[:20]
        ]
        for level in ("high", "low")
    ]
    vector = SteeringVector.extract(demo.model, demo.tokenizer, *sides, pole=HIGH)
    replace(vector, model=Checkpoint.open(path).fingerprint.digest).save(folder / "vector")
    (folder / "recipe.yaml").write_text(
        f"model: builtin:demo\nvector: vector\nstatements: statements.jsonl\nlimit: 8\n"
        f"question: {ASKED}\ngeneration: {{max_new_tokens: 8, samples: 2}}\n"
        "layers: [1, 2, 3]\nverify: 2\nshares: [0.1, 0.2]\nfloor: 0.1\n"
    )
    return folder


@pytest.fixture(scope="module")
def found(folder, tmp_path_factory):
    return choose(parsed(folder), tmp_path_factory.mktemp("found"))


def parsed(folder, **changes):
    import yaml

    data = yaml.safe_load((folder / "recipe.yaml").read_text()) | changes
    return ChooseRecipe.parse(data, origin="test", folder=folder)


def written(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_same_recipe_writes_the_same_bytes(folder, found, tmp_path, capsys):
    arguments = ["steer", "choose", str(folder / "recipe.yaml"), "--out", str(tmp_path / "one")]
    assert run([*arguments, "--quiet"]) == 0
    save_choice(found, tmp_path / "two", force=False)
    one, two = map(written, (tmp_path / "one", tmp_path / "two"))
    names = {"choice.json", "curve.csv", "layers.csv", "choice.png", "choice.svg", "MANIFEST.json"}
    assert set(one) == names
    assert one == two
    record = json.loads(one["choice.json"])
    said = capsys.readouterr().out
    assert f"layers: [{record['layer']}]" in said
    assert "d' and auc on the train part" in " ".join(said.split())
    assert record["part"] == "train"
    assert record["made_from"]["contents"]["model"]
    assert record["made_from"]["statements"]["part"] == "train"


def test_a_choice_holds_what_it_rests_on(found):
    assert [one.layer for one in found.layers] == [1, 2, 3]
    assert found.layer in found.verified
    assert len(found.verified) <= 2
    table = found.curve_table()
    assert set(table["layer"]) == set(found.verified)
    for layer, unit in found.layer_table().set_index("layer")["unit"].items():
        rows = table[table["layer"] == layer]
        assert np.allclose(rows["coefficient"], rows["share"] * unit)
    kept = table[table["usable"] & (table["layer"] == found.layer)]["coefficient"]
    assert found.coefficients == (min(0, kept.min()), max(0, kept.max()))


def test_the_shift_is_that_of_the_deciding_half_alone(folder, found, demo):
    inputs, one = Inputs.open(parsed(folder)), found.curves[0]
    base = likelihood_of(demo, inputs.deciding)
    with steered(demo.model, {one.layer: inputs.vector[one.layer]}, one.coefficient):
        moved = likelihood_of(demo, inputs.deciding)
    assert one.shift == pytest.approx(moved - base, abs=1e-6)
    deciding, teaching = ({s.text for s in half} for half in inputs.halves)
    assert deciding.isdisjoint(teaching)
    assert {s.text for s in inputs.deciding} <= deciding


def test_statements_decide_in_an_order_that_is_not_the_files(folder):
    deciding = Inputs.open(parsed(folder)).deciding
    mirrored = folder / "mirrored.jsonl"
    lines = (folder / "statements.jsonl").read_text().splitlines()
    mirrored.write_text("\n".join(reversed(lines)) + "\n")
    assert Inputs.open(parsed(folder, statements=str(mirrored))).deciding == deciding
    named = [s.text for s in read_statements(mirrored, trait="extraversion", part="train")]
    places = [named.index(statement.text) for statement in deciding]
    assert places != sorted(places)
    assert places != sorted(places, reverse=True)


def test_it_reads_only_its_own_part(folder):
    parts = {}
    for part in ("train", "held_out"):
        halves = Inputs.open(parsed(folder, part=part)).halves
        parts[part] = {s.text for half in halves for s in half}
        named = read_statements(folder / "statements.jsonl", part=part)
        assert parts[part] == {s.text for s in named}
    assert parts["train"].isdisjoint(parts["held_out"])


def test_the_opposite_pole_is_the_mirror(folder, tmp_path):
    """Towards the low pole the same vector is worse by what it was better."""
    recipe = parsed(folder, pole="extraversion:low")
    with pytest.raises(DataError, match="check that the pole is"):
        choose(recipe, tmp_path)


# Resuming


class Killed(BaseException):
    """What ends a process in the middle of its work."""


def test_a_killed_choice_resumes_and_writes_the_same_bytes(folder, found, tmp_path, monkeypatch):
    """Nothing that was measured before the end is measured again."""
    measured, take = [], Worker._measure_group

    def until(limit):
        def measure(worker, points, measures):
            if len(measured) >= limit:
                raise Killed
            measured.extend(points)
            take(worker, points, measures)

        return measure

    monkeypatch.setattr(Worker, "_measure_group", until(3))
    with pytest.raises(Killed):
        choose(parsed(folder), tmp_path / "run")
    monkeypatch.setattr(Worker, "_measure_group", until(math.inf))
    save_choice(choose(parsed(folder), tmp_path / "run"), tmp_path / "resumed", force=False)
    save_choice(found, tmp_path / "whole", force=False)
    assert len(set(measured)) == len(measured) == 1 + len(found.curves)
    assert written(tmp_path / "resumed") == written(tmp_path / "whole")


def test_other_shares_measure_only_what_is_missing(folder, tmp_path):
    def seconds():
        cells = Run(tmp_path / "run").cells().set_index(["intervention", "strength", "measure"])
        return cells["seconds"].to_dict()

    choose(parsed(folder, verify=1, shares=[0.1]), tmp_path / "run")
    few = seconds()
    more = choose(parsed(folder, verify=1, shares=[0.1, 0.2]), tmp_path / "run")
    many = seconds()
    assert few.items() < many.items()
    assert {point.share for point in more.curves} == {-0.2, -0.1, 0.1, 0.2}


# Refusals


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"layers": []}, "layers: needs at least one"),
        ({"layers": [1, 1]}, "a value is given twice"),
        ({"shares": [0.2, 0.1]}, "shares must rise from above 0"),
        ({"shares": [-0.1, 0.1]}, "shares must rise from above 0"),
        ({"floor": 1.5}, "floor"),
        ({"verify": 0}, "verify"),
        ({"layer": [1]}, "unknown key 'layer'; did you mean 'layers'"),
    ],
)
def test_a_wrong_recipe_is_refused(folder, changes, match):
    with pytest.raises(RecipeError, match=match):
        parsed(folder, **changes)


def test_a_vector_of_another_model_is_refused(folder, pico):
    with pytest.raises(BaseMismatchError, match=r"was extracted from model .*, but .* is model"):
        Inputs.open(parsed(folder, model=str(pico("qwen2"))))


def test_a_vector_of_another_width_is_refused(folder, tmp_path):
    vector = SteeringVector.load(folder / "vector")
    narrow = {layer: direction[:32] for layer, direction in vector.directions.items()}
    replace(vector, model="", directions=narrow).save(tmp_path / "narrow")
    with pytest.raises(BaseMismatchError, match=r"is 32 wide, but the residual stream of"):
        Inputs.open(parsed(folder, vector=str(tmp_path / "narrow")))


def test_a_vector_without_a_pole_needs_one(folder, tmp_path):
    replace(SteeringVector.load(folder / "vector"), pole=None).save(tmp_path / "v")
    with pytest.raises(RecipeError, match="has no pole; give one"):
        Inputs.open(parsed(folder, vector=str(tmp_path / "v")))
    assert Inputs.open(parsed(folder, vector=str(tmp_path / "v"), pole=str(HIGH))).pole == HIGH


def test_statements_of_one_pole_are_refused(folder, tmp_path):
    rows = (folder / "statements.jsonl").read_text().splitlines(keepends=True)
    one_sided = "".join(row for row in rows if '"high"' in row or "openness" in row)
    (tmp_path / "statements.jsonl").write_text(one_sided)
    recipe = parsed(folder, statements=str(tmp_path / "statements.jsonl"))
    with pytest.raises(DataError, match="0 statements of extraversion:low"):
        Inputs.open(recipe)


def test_a_layer_that_does_not_exist_is_refused(folder, tmp_path):
    recipe = parsed(folder, layers=[7])
    with pytest.raises(ModelError, match="layer 7 does not exist"):
        choose(recipe, tmp_path)


def test_a_choice_is_not_overwritten(tmp_path):
    found = choice([point(s, s) for s in (-0.1, 0.1)], (3,))
    save_choice(found, tmp_path / "out", force=False)
    with pytest.raises(OutputExistsError):
        save_choice(found, tmp_path / "out", force=False)
