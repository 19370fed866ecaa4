"""mergekit's YAML: read as it is, and written from a merge recipe of ours."""

from personality_vector.merging.mergekit.bridge import BridgePlan, write_bridge
from personality_vector.merging.mergekit.export import export_mergekit
from personality_vector.merging.mergekit.plan import plan_mergekit

__all__ = [
    "BridgePlan",
    "export_mergekit",
    "plan_mergekit",
    "write_bridge",
]
