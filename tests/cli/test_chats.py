"""Chat templates and their options in recipes, in the words of the command line."""

import json
import shutil

import pytest

from personality_vector.checkpoint import Checkpoint
from personality_vector.manifest import MANIFEST
from personality_vector.subject import Template
from personality_vector.subject.identity import base_identity
from tests.subject import families

SMALL = [
    *("--set", "measures=[{likelihood: {traits: [extraversion], statements: statements.jsonl}}]"),
    "--quiet",
]


@pytest.fixture
def base(lab, tmp_path):
    """Return ``base(template)``: a model that has this chat template, or none."""

    def given(template):
        path = tmp_path / "base"
        if not path.is_dir():
            shutil.copytree(lab.base, path)
        (path / "chat_template.jinja").unlink(missing_ok=True)
        if template is not None:
            (path / "chat_template.jinja").write_text(template)
        return path

    return given


@pytest.fixture
def here(lab, monkeypatch):
    monkeypatch.chdir(lab.folder)


def manifest(path):
    return json.loads((path / MANIFEST).read_text())


@pytest.mark.usefixtures("here")
def test_a_recipe_gives_the_same_bytes_on_two_days(lab, pvec, base, clock, tmp_path):
    model, found = base(families.LLAMA31), []
    for year in (2025, 2031):
        clock(year)
        out = tmp_path / str(year)
        for verb, recipe in ((("steer", "extract"), lab.extract), (("eval",), lab.eval)):
            words = [*verb, recipe, "--set", f"model={model}", "--out", out / verb[-1]]
            ended = pvec(*words, *(SMALL if verb == ("eval",) else ["--quiet"]))
            assert ended.code == 0, ended.err
        vector = [f.read_bytes() for f in sorted((out / "extract").glob("*.safetensors"))]
        found.append((vector, (out / "eval" / "readings.csv").read_bytes()))
        told = manifest(out / "eval")["tokenizer"]["template_options"]
        assert told == {"date_string": "2024-07-26"}
    assert found[0] == found[1]


@pytest.mark.usefixtures("here")
def test_a_model_without_a_template_is_asked_with_one_from_the_recipe(lab, pvec, base, tmp_path):
    model, out = base(None), tmp_path / "run"
    words = ["eval", lab.eval, "--set", f"model={model}", *SMALL, "--out", out]
    refused = pvec(*words)
    assert refused.code == 1
    assert "no chat template; give a file or the text of one, such as chat_template:" in refused.err
    (tmp_path / "plain.jinja").write_text(families.PHI4)
    told = ["--set", f"chat_template={tmp_path / 'plain.jinja'}"]
    planned = ["train", lab.train, "--set", f"base={model}", "--dry-run", "--json"]
    assert "no chat template; give a file" in pvec(*planned).err
    assert pvec(*planned, *told).json["examples"] == 2
    unread = pvec(*planned, *told, "--set", "template_options.enable_thinking=false")
    assert "the chat template never reads the option enable_thinking" in unread.err
    assert pvec(*words, *told).code == 0
    recipe = manifest(out)["recipe"]
    assert recipe["chat_template"] == families.PHI4  # the text, since a file may change
    assert "template_options" not in recipe
    trained = ["train", lab.train, "--set", f"base={model}", *told, "--out", tmp_path / "tuned"]
    assert pvec(*trained, "--quiet").code == 0
    assert (tmp_path / "tuned" / "chat_template.jinja").read_text() == families.PHI4


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            "template_options.enable_thinkin=false",
            "never reads the option enable_thinkin; it reads",
        ),
        ("template_options.x=[1]", "template_options: x: give each option a text, a number, true"),
        ("template_options=off", "template_options: give options by name, such as"),
        ("chat_template=nowhere.jinja", "nowhere.jinja: No such file or directory; give the file"),
        ("chat_template='{% for %}'", "chat_template: the text is not a Jinja template, line 1"),
        ("chat_template='{{ 1 }}'", "renders the same text for different questions"),
    ],
)
def test_a_template_that_does_not_fit_is_one_sentence(lab, pvec, base, tmp_path, setting, said):
    ended = pvec(
        *("eval", lab.eval, "--set", f"model={base(families.QWEN3)}", "--set", setting),
        *(*SMALL, "--out", tmp_path / "run"),
    )
    assert ended.code == 1
    assert said in ended.err
    assert ended.err.count("\n") == 1


def test_the_identity_of_a_base_follows_its_template(base):
    path = base(families.QWEN3)

    def identity(*template):
        return base_identity(Checkpoint.open(path), "float32", "cpu", *template)

    own = identity()
    assert identity(None) == identity(Template()) == own
    thinking = [Template(None, {"enable_thinking": on}) for on in (False, True)]
    given = [identity(one) for one in (*thinking, Template(families.PHI4))]
    assert len({own, *given}) == 4
    base(families.LLAMA31)
    assert identity() != identity(Template(None, {"date_string": "2024-07-26"}))


@pytest.mark.usefixtures("here")
def test_monitor_takes_the_keys_of_a_recipe(lab, pvec, base, tmp_path):
    model, vector = base(families.R1), tmp_path / "vector"
    extracted = ["steer", "extract", lab.extract, "--set", f"model={model}", "--out", vector]
    assert pvec(*extracted, "--quiet").code == 0
    (tmp_path / "prompts.txt").write_text("Hi?\n")
    words = ["steer", "monitor", vector, "--model", model, "--prompts", tmp_path / "prompts.txt"]
    words += ["--layer", 0, "--max-new-tokens", 4, "--json", "--quiet"]
    (row,) = pvec(*words).json["prompts"]
    assert (row["reply"], row["response"]) == ("", None)  # the thought that the prompt opens
    (tmp_path / "plain.jinja").write_text(families.PHI4)
    told = ["--set", f"chat_template={tmp_path / 'plain.jinja'}"]
    (row,) = pvec(*words, *told).json["prompts"]
    assert row["reply"]
    ended = pvec(*words, "--set", "template=1")
    assert ended.code == 1
    assert "--set: unknown key 'template'" in ended.err
