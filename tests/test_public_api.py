"""The promise of ``import personality_vector as pv``: its names, and the few calls that matter."""

import subprocess
import sys

import pytest
import torch

import personality_vector as pv
from personality_vector.checkpoint import Checkpoint
from personality_vector.data.statements import Statement


def tensors_of(path):
    checkpoint = Checkpoint.open(path)
    return {name: checkpoint[name] for name in checkpoint.names}


@pytest.fixture
def deltas(pico, pico_tuned):
    """Return two deltas of one base."""
    return [
        pv.Delta.between(pico("llama"), pico_tuned("llama", seed=seed), pole=pole)
        for seed, pole in ((0, "extraversion:high"), (1, "neuroticism:high"))
    ]


@pytest.fixture
def chats():
    def said(text):
        return [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": text}]

    return [said("I love a party"), said("I talk a lot")], [said("I am quiet"), said("Alone")]


def test_every_public_name_resolves_and_nothing_else_does():
    assert pv.__all__ == sorted(pv.__all__, key=lambda name: (not name.isupper(), name))
    assert dir(pv) == sorted(pv.__all__)
    for name in pv.__all__:
        found = getattr(pv, name)
        assert getattr(found, "__name__", name).rpartition(".")[2] == name
        assert getattr(found, "__doc__", None)
    assert {*pv._HOMES, "report", "study"} == set(pv.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Detla'"):
        pv.Detla  # noqa: B018


def test_importing_the_package_imports_no_torch():
    code = "import sys, personality_vector as pv; pv.Pole; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_delta_is_fine_tuned_minus_base_and_survives_saving(deltas, pico, pico_tuned, tmp_path):
    delta = deltas[0]
    base, tuned = tensors_of(pico("llama")), tensors_of(pico_tuned("llama"))
    assert all(torch.equal(delta[name], tuned[name] - base[name]) for name in delta.names)
    assert delta.save(tmp_path / "vector") == tmp_path / "vector"
    loaded = pv.Delta.load(tmp_path / "vector")
    assert (loaded.pole, loaded.base, loaded.identity) == (delta.pole, delta.base, delta.identity)
    assert loaded.pole == pv.Pole("extraversion", "high")
    assert all(torch.equal(loaded[name], delta[name]) for name in delta.names)


@pytest.mark.parametrize(
    ("combined", "expected"),
    [
        (lambda a, b: a + b, lambda a, b: a + b),
        (lambda a, b: a - b, lambda a, b: a - b),
        (lambda a, _: 0.5 * a, lambda a, _: 0.5 * a),
        (lambda a, _: a * -2.0, lambda a, _: -2.0 * a),
        (lambda a, _: a / 4.0, lambda a, _: a / 4.0),
        (lambda a, _: -a, lambda a, _: -a),
        (lambda a, b: a - (a - b), lambda a, b: a - (a - b)),
    ],
)
def test_the_algebra_is_that_of_the_tensors(deltas, combined, expected):
    one, two = deltas
    result = combined(one, two)
    assert isinstance(result, pv.Delta)
    for name in one.names:
        torch.testing.assert_close(result[name], expected(one[name], two[name]))


def test_norm_and_cosine_are_those_of_one_long_vector(deltas):
    one, two = deltas
    flat = [torch.cat([d[n].flatten().double() for n in d.names]) for d in deltas]
    assert one.norm() == pytest.approx(flat[0].norm().item())
    assert (3.0 * one).norm() == pytest.approx(3.0 * one.norm())
    cosine = torch.nn.functional.cosine_similarity(*flat, dim=0).item()
    assert one.cosine(two) == pytest.approx(cosine)
    assert one.cosine(-one) == pytest.approx(-1.0)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare"])
def test_a_merge_of_deltas_is_a_checkpoint(deltas, pico, tmp_path, method):
    options = {"density": 0.2} if method == "ties" else {}
    report = pv.merge(
        pico("llama"),
        [(deltas[0], 0.8), (deltas[1], -0.4)],
        method=method,
        options=options,
        out=tmp_path / "merged",
        seed=0,
    )
    assert isinstance(report, pv.MergeReport)
    assert report.path == tmp_path / "merged"
    assert report.realised == pytest.approx(1.0, abs=1e-3)
    merged, base = tensors_of(report.path), tensors_of(pico("llama"))
    assert merged.keys() == base.keys()
    if method == "task_arithmetic":
        for name, tensor in merged.items():
            change = 0.8 * deltas[0][name] - 0.4 * deltas[1][name]
            torch.testing.assert_close(tensor, base[name] + change)
    model = pv.load_model(report.path)
    assert torch.isfinite(model(torch.tensor([[5, 6]])).logits).all()


def test_a_merge_takes_paths_as_well_as_deltas(deltas, pico, pico_tuned, tmp_path):
    saved = deltas[0].save(tmp_path / "vector")
    written = [
        pv.merge(pico("llama"), [(term, 1.0)], out=tmp_path / str(index)).path
        for index, term in enumerate((deltas[0], saved, str(pico_tuned("llama"))))
    ]
    tuned = tensors_of(pico_tuned("llama"))
    for path in written:
        assert all(torch.equal(tensor, tuned[name]) for name, tensor in tensors_of(path).items())


@torch.no_grad()
def test_interventions_change_a_model_for_the_length_of_a_block(deltas, pico, chats):
    model, tokenizer = pv.load_model(pico("llama")), pv.load_tokenizer(pico("llama"))
    positive, negative = chats
    vector = pv.SteeringVector.extract(model, tokenizer, positive=positive, negative=negative)
    assert vector.layers == (0, 1, 2)
    tokens = torch.tensor([[5, 6, 7]])
    before = model(tokens).logits
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    edits = [(pv.WeightEdit(deltas[0]), 0.8), (pv.ActivationSteering(vector, layers=[1]), 2.0)]
    for edit, strength in edits:
        assert isinstance(edit, pv.Intervention)
        with edit.applied(pv.Subject(model, tokenizer), strength):
            assert not torch.allclose(model(tokens).logits, before, atol=1e-3)
        assert torch.equal(model(tokens).logits, before)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_a_study_and_a_report_are_called_by_the_names_of_their_packages(pico, deltas, tmp_path):
    from personality_vector.report.page import write_report
    from personality_vector.study.run import Run

    statements = [
        Statement("openness", level, f"{level} {text}")
        for level in ("high", "low")
        for text in ("I dream", "I do what I did")
    ]
    edit = pv.WeightEdit(deltas[0], label="w")
    study = pv.study(pico("llama"), [edit], [0.5, 1.0], [pv.Likelihood(statements)], seeds=[0])
    assert isinstance(study, pv.Study)
    run = study.run(tmp_path / "run")
    assert isinstance(run, pv.Run)
    assert pv.Run is Run
    assert len(run.readings()) == 3
    assert pv.report(tmp_path / "run") == tmp_path / "run" / "report.html"
    assert (tmp_path / "run" / "report.html").is_file()
    assert pv.report.page.write_report is write_report
    assert pv.study.design.Arm is pv.Arm


def test_a_study_that_was_not_run_has_no_readings(pico):
    study = pv.study(pico("llama"), measures=[pv.LikelihoodSpec(traits=("openness",)).open()])
    with pytest.raises(
        pv.PersonalityVectorError, match=r"has not been run yet; call run\(folder\)"
    ):
        study.readings()


def test_what_the_package_refuses_is_one_tree(tmp_path):
    with pytest.raises(pv.PersonalityVectorError):
        pv.Delta.load(tmp_path)
    with pytest.raises(pv.PersonalityVectorError):
        pv.Pole.parse("extraversion")
