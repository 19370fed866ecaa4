"""A merge by a mergekit YAML of toy checkpoints."""

import pytest
from safetensors.torch import load_file

from personality_vector.merging.engine import write_merge
from personality_vector.merging.mergekit.bridge import BridgePlan, write_bridge
from personality_vector.merging.mergekit.plan import plan_mergekit


@pytest.fixture
def plan(tmp_path):
    """Return ``plan(yaml, seed=0)``: its plan, with relative paths in the folder of the test."""

    def make(given, seed=0):
        return plan_mergekit(given, origin="m.yaml", folder=tmp_path, seed=seed)

    return make


@pytest.fixture
def merged(plan, tmp_path):
    """Return ``merged(yaml, seed=0)``: the tensors that it writes."""

    def run(given, seed=0):
        checked = plan(given, seed)
        write = write_bridge if isinstance(checked, BridgePlan) else write_merge
        report = write(checked, tmp_path / "out", force=True)
        return load_file(report.path / "model.safetensors")

    return run
