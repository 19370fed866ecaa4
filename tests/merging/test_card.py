"""A model card holds what the manifest says, and nothing that a label smuggles in."""

from html.parser import HTMLParser

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from personality_vector.merging.card import model_card
from personality_vector.merging.merged import merged
from personality_vector.merging.plan import Output, plan_merge

MERGE = {
    "base": {"reference": "Qwen/Qwen2.5-0.5B", "fingerprint": "ab12cd"},
    "terms": [
        {"label": "extraversion:high", "alpha": 0.8, "pole": "extraversion:high"},
        {"label": "b", "alpha": -1.0, "pole": None},
    ],
    "method": "ties",
    "source": "Yadav et al. 2023",
    "options": {"density": 0.2, "trim": "global", "lambda": 1.0},
    "seed": 3,
    "output": {"dtype": "same", "rounding": "stochastic"},
    "realised": 0.98765,
    "tensors": {
        "a": {"change_norm": 3.0, "base_norm": 30.0},
        "b": {"change_norm": 4.0, "base_norm": 40.0},
    },
    "recipe": {"base": "Qwen/Qwen2.5-0.5B", "terms": [{"tuned": "a", "alpha": 0.8}]},
}


class Page(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, *attrs))

    def handle_data(self, data):
        self.text += data


def page_of(merge):
    """Return the card as a reader of Markdown with tables and raw HTML shows it."""
    body = model_card(merge).split("\n---\n", 1)[1]
    return Page(MarkdownIt("commonmark").enable("table").render(body))


def metadata_of(merge):
    return ModelCard(model_card(merge)).data.to_dict()


def with_term(**term):
    return {**MERGE, "terms": [{"label": "a", "alpha": 1.0, **term}]}


def test_it_says_what_was_merged_and_how():
    card = model_card(MERGE)
    for text in (
        "theta = base + ties(0.8 * extraversion:high, -1 * b)",
        "| extraversion:high | 0.8 | extraversion:high |",
        "| b | -1 | - |",
        "density = 0.2, trim = global, lambda = 1; seed 3",
        "rounding stochastic",
        "Realised alpha: 0.9877 times",
        "norm 5, the tensors that it changes 50",
        "Fingerprint of the base: ab12cd",
    ):
        assert text in card
    assert "identity" not in card


def test_task_arithmetic_is_a_sum():
    plain = {**MERGE, "method": "task_arithmetic", "options": {"lambda": 1.0}}
    assert "theta = base + 0.8 * extraversion:high - 1 * b\n" in model_card(plain)
    scaled = {**plain, "options": {"lambda": 0.5}}
    assert "theta = base + task_arithmetic(0.8 * extraversion:high" in model_card(scaled)


@pytest.mark.parametrize(
    ("alpha", "shown"),
    [([0.1, 0.5], "[0.1, 0.5]"), ({"q_proj": 0.3, "*": [0, 1]}, "q_proj: 0.3, *: [0, 1]")],
)
def test_an_alpha_of_many_numbers_is_shown_in_the_table(alpha, shown):
    merge = with_term(alpha=alpha)
    assert shown in page_of(merge).text
    assert "alpha_1 * a" in model_card(merge)


def test_the_recipe_can_be_read_back_from_the_page():
    recipe = {"base": "x", "note": "```\n````<script>\n---\n", "terms": [{"label": "\u202eü"}]}
    text = page_of({**MERGE, "recipe": recipe}).text
    start, end = text.index("base: x"), text.index("Use\n")
    assert yaml.safe_load(text[start:end]) == recipe


def test_without_a_recipe_or_a_realised_share_nothing_is_claimed():
    bare = {key: MERGE[key] for key in MERGE if key not in ("recipe", "realised", "tensors")}
    for word in ("Make it again", "Realised", "norm"):
        assert word in model_card(MERGE)
        assert word not in model_card(bare)


def test_the_hub_reads_its_metadata():
    assert metadata_of(MERGE) == {
        "base_model": "Qwen/Qwen2.5-0.5B",
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "personality-vector", "ties"],
    }


@pytest.mark.parametrize("reference", ["base", "builtin:demo", "a/b/c", "a/b\nlicense: mit"])
def test_a_base_that_the_hub_does_not_know_is_no_metadata(reference):
    metadata = metadata_of({**MERGE, "base": {"reference": reference}})
    assert metadata.keys() == {"library_name", "tags"}


EVIL = [
    "a\n# b",
    "<script>alert(1)</script>",
    "a|b",
    "\\|b",
    "[x](https://evil.test)",
    "![x](https://evil.test/x.png)",
    "https://evil.test www.evil.test a@evil.test",
    "`rm`",
    "```\n<b>",
    "*x* __y__ ~~z~~",
    "\x1b[2J\u202e",
    "&lt;&#60;",
    "---",
    "- x",
]


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize(
    "place",
    [
        lambda text: with_term(label=text),
        lambda text: with_term(of=text),
        lambda text: with_term(alpha={text: 1.0}),
        lambda text: {**with_term(), "base": {"reference": text, "fingerprint": text}},
        lambda text: {**with_term(), "method": text, "source": text, "options": {text: text}},
        lambda text: {**with_term(), "notes": [text], "recipe": {text: text}},
    ],
    ids=["label", "of", "alpha", "base", "method", "recipe"],
)
def test_what_a_recipe_says_is_shown_and_does_nothing(evil, place):
    harmless, shown = page_of(place("x")), page_of(place(evil))
    assert shown.tags == harmless.tags
    printable = "".join(c if c.isprintable() else " " for c in evil)
    assert printable.strip() in shown.text


def test_no_bare_address_is_left_for_a_renderer_to_link():
    card = model_card(with_term(label="https://evil.test www.evil.test a@evil.test"))
    row = next(line for line in card.splitlines() if "evil" in line and "|" in line)
    assert not any(address in row for address in ("https:/", "www.", "a@"))


def test_it_takes_what_a_plan_describes(pico, pico_tuned):
    terms = [(pico_tuned("llama"), (0.1, 0.5)), (pico_tuned("llama", seed=1), -0.3)]
    plan = plan_merge(pico("llama"), merged(pico("llama"), terms, method="ties"), output=Output())
    text = page_of({**plan.describe(), "realised": 0.5, "tensors": {}}).text
    assert plan.base.fingerprint.digest in text
    assert all(term.delta.identity in text for term in plan.merged.terms)
    assert all(f"{name} = " in text for name in plan.describe()["options"])
