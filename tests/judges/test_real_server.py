"""The endpoint judge at a real server: SmolLM2 in llama.cpp; `make extras` installs both."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from urllib.request import Request, urlopen

import pytest

from personality_vector.data.personas import rubric_of
from personality_vector.errors import ModelError, PersonalityVectorError
from personality_vector.judges.endpoint import EndpointJudge
from personality_vector.lab import SMOLLM2, builtin
from personality_vector.study.recipe import open_study
from personality_vector.study.tables import tables_of
from personality_vector.subject.protocols import Answer
from personality_vector.subject.responses import Responses
from tests.billy import ARMS, shrunk
from tests.gguf_models import write_gguf

pytestmark = pytest.mark.slow
KEY = "a-key-that-nobody-may-see"
TEXTS = [
    "I love parties, and I talk to everybody there.",
    "I would rather stay at home, alone with a book.",
    "The bus to the station leaves at ten past six.",
    "As an AI, I have no personality.",
    "Je ne sais pas.",
    "5",
    "",
    "\u202e\x00{}[]<reply>\n",
    "talk " * 5000,
]
# The reply is begun, since a model of this size would seldom write a number.
TEMPLATE = """\
{%- for one in messages %}<|im_start|>{{ one.role }}
{{ one.content }}<|im_end|>
{% endfor %}<|im_start|>assistant
The number is """
RUBRIC = rubric_of("extraversion")
SCRIPT = """
import sys
from pathlib import Path
from personality_vector.data.personas import rubric_of
from personality_vector.judges.endpoint import EndpointJudge
from personality_vector.subject.protocols import Answer
judge = EndpointJudge(model="smollm2", base_url=sys.argv[1], scale="1-5", requests=2)
asked = [Answer("who", 0, "Who are you?", f"I am number {n} of many.") for n in range(24)]
judge = judge.billed_to(Path(sys.argv[2]))
print([score.value for score in judge(rubric_of("extraversion"), asked)])
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Return the address of a server."""
    if find_spec("xllamacpp") is None:
        pytest.skip("needs the package xllamacpp (`make extras` installs it)")
    with pytest.MonkeyPatch.context() as patch:
        users = os.environ["PVEC_USERS_CACHE"]
        patch.delenv("PVEC_CACHE")
        if users:
            patch.setenv("PVEC_CACHE", users)
        try:
            model = builtin(f"builtin:{SMOLLM2}")
        except PersonalityVectorError as error:
            pytest.skip(str(error))
    import xllamacpp

    file = tmp_path_factory.mktemp("server") / "model.gguf"
    options = xllamacpp.CommonParams()
    options.model.path = str(write_gguf(model, file, stored="Q8_0", cut="smollm"))
    options.chat_template, options.use_jinja = TEMPLATE, True
    options.n_ctx, options.n_parallel, options.port, options.verbosity = 4096, 2, 0, -1
    running = xllamacpp.Server(options)
    yield f"{running.listening_address}/v1"
    del running


@pytest.fixture
def judge(server, monkeypatch, tmp_path):
    monkeypatch.setenv("PVEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def made(**options):
        options = {"scale": "1-5", "requests": 2, **options}
        return EndpointJudge(model="smollm2", base_url=server, **options).billed_to(tmp_path)

    return made


def answers(*texts):
    return [Answer("who", 0, "Who are you?", text) for text in texts]


def expected(server, judge, text):
    """Return the mean of the digits that the server would write, asked without this tool."""
    body = {"messages": judge.prompt(RUBRIC, *answers(text)), "max_tokens": 1, "temperature": 0}
    body |= {"model": "smollm2", "seed": 0, "logprobs": True, "top_logprobs": 20}
    request = Request(f"{server}/chat/completions", json.dumps(body).encode())
    with urlopen(request) as response:
        (first,) = json.load(response)["choices"][0]["logprobs"]["content"]
    found = {one["token"].strip(): math.exp(one["logprob"]) for one in first["top_logprobs"]}
    mass = {digit: found.get(str(digit), 0.0) for digit in range(1, 6)}
    return sum(digit * p for digit, p in mass.items()) / sum(mass.values())


def test_every_answer_ends_scored_or_with_its_reason(server, judge, tmp_path):
    rater = judge()
    found = rater(RUBRIC, answers(*TEXTS))
    assert len(found) == len(TEXTS)
    assert all(one.reason if one.value is None else 1 <= one.value <= 5 for one in found)
    # llama.cpp computes two requests at once a little differently from one.
    assert found[0].value == pytest.approx(expected(server, rater, TEXTS[0]), abs=0.1)
    assert found[-1].value is None
    assert "400" in found[-1].reason
    billed = rater.bill()["requests"]
    assert judge()(RUBRIC, answers(*TEXTS[:-1])) == found[:-1]
    assert judge().bill()["requests"] == billed, "what was answered is not asked again"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not any(KEY.encode() in file.read_bytes() for file in files)
    assert KEY not in str(found)


def test_a_budget_is_kept_and_the_rest_follows_once_it_is_raised(judge):
    prices = {"price_in": 1.0, "price_out": 1.0}
    with pytest.raises(ModelError, match=r"the budget of 0\.0015 is used up"):
        judge(**prices, budget=0.0015)(RUBRIC, answers(*TEXTS[:6]))
    bill = judge(**prices).bill()
    assert 0 < bill["price"] <= 0.0015
    assert None not in [s.value for s in judge(**prices, budget=1.0)(RUBRIC, answers(*TEXTS[:2]))]


def test_a_scale_of_whole_numbers_is_refused_where_digits_are_tokens(judge):
    with pytest.raises(ModelError, match=r"digit by digit.*use scale 1-5"):
        judge(scale="0-100")(RUBRIC, answers(*TEXTS[:2]))


def test_after_a_kill_only_what_was_on_its_way_is_asked_again(server, judge, tmp_path):
    account, words = judge().account, [sys.executable, "-c", SCRIPT, server, str(tmp_path)]

    def asked():
        with Responses.open() as kept:
            return kept.spent(account).requests

    first = subprocess.Popen(words)
    while asked() < 6:
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert asked() < 24
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout.replace("None", "null"))) == 24
    assert 24 <= asked() <= 24 + 2


def test_it_rates_every_arm_of_billys_design(server, pico, pico_tuned, tmp_path, monkeypatch):
    """All arms, with the server as judge of originality, elaboration and quality, and their cost.

    The arms are those of a pico model, whose replies are noise: it is the path that is tested.
    """
    monkeypatch.setenv("PVEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    own = {"model": "smollm2", "base_url": server, "scale": "1-5", "requests": 2}
    recipe = shrunk(tmp_path, pico, pico_tuned, ["infrequency", {"endpoint": own}])
    run = open_study(recipe).run(tmp_path / "run")
    answers = run.answers().query("judge == 'endpoint smollm2'")
    assert set(answers["trait"]) == {"originality", "elaboration", "quality"}
    assert set(answers["intervention"]) == set(ARMS)
    assert (answers["score"].between(1, 5) | (answers["reason"] != "")).all()
    assert answers["score"].notna().any()
    costs = tables_of(run)["side effects"].set_index("intervention")
    spent = costs["tokens_in"] + costs["tokens_out"]
    assert spent["discussion"] > 10 * spent["base"]
