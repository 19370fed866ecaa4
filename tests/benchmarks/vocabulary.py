"""The memory of measures whose logits are as wide as the vocabulary.

    python -m tests.benchmarks.vocabulary

The embedded model gets 128,000 embeddings, those beyond its tokenizer being zero. Each row of the
table is a whole process of `pvec eval` with one measure: the peak of what it allocated.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent / "merging"))

from runner import markdown, measure

from personality_vector.checkpoint import Checkpoint
from personality_vector.lab import builtin
from personality_vector.subject.models import load_model

ASKED = {
    "instrument": "builtin:eval/instruments/interview.yaml",
    "generation": {"max_new_tokens": 100, "samples": 5},
}
MEASURES: dict[str, dict[str, Any]] = {
    "likelihood, 40 statements": {"likelihood": {"traits": ["extraversion"], "limit": 20}},
    "likelihood, 400 statements": {"likelihood": {"traits": ["extraversion"], "limit": 200}},
    "divergence, 500 tokens": {"divergence": {**ASKED, "max_tokens": 500}},
    "divergence, 2,000 tokens": {"divergence": {**ASKED, "max_tokens": 2000}},
}


def main() -> None:
    """Measure each and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--words", type=int, default=128_000)
    given = parser.parse_args()
    rows = []
    with TemporaryDirectory() as folder:
        wide = widened(Path(folder) / "wide", given.words)
        for name, spec in MEASURES.items():
            usages = [evaluated(Path(folder), model, spec) for model in ("builtin:demo", str(wide))]
            rows.append([name, *(f"{usage.anonymous / 1e6:.0f}" for usage in usages)])
    own = Checkpoint.open(builtin("builtin:demo")).config["vocab_size"]
    print(markdown(["MB, by words", f"{own:,}", f"{given.words:,}"], rows))


def widened(out: Path, words: int) -> Path:
    """Write the embedded model with so many embeddings."""
    base = Checkpoint.open(builtin("builtin:demo"))
    model = load_model(base.path)
    own = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(words, mean_resizing=False)
    model.get_input_embeddings().weight.data[own:] = 0
    model.save_pretrained(out)
    base.copy_side_files(out)
    return out


def evaluated(folder: Path, model: str, spec: dict[str, Any]) -> Any:
    """Return what a process took that measures ``model`` by ``spec`` alone."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"model": model, "measures": [spec]}), encoding="utf-8")
    pvec = Path(sys.executable).with_name("pvec")
    out = TemporaryDirectory(dir=folder)
    return measure([pvec, "eval", recipe, "--out", f"{out.name}/run", "--quiet"], threads=1)


if __name__ == "__main__":
    main()
