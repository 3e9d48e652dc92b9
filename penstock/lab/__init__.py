"""Nodes and workloads made of network namespaces: demo, tests and bench stand on it.

spec = lab.load("lab.yaml")
lab.up(spec)
lab.run_in(spec.workload("frontend").netns, ["curl", "http://10.244.1.11:8080/"])
lab.down(spec.name)
"""

from penstock.lab.build import add_workload, remove_workload
from penstock.lab.errors import LabError, LabSpecError
from penstock.lab.file import load
from penstock.lab.lab import down, find, list_labs, log_of, names, up
from penstock.lab.netns import entered, run_in
from penstock.lab.spec import LabNode, LabSpec, LabWorkload, write_manifests

__all__ = [
    "LabError",
    "LabNode",
    "LabSpec",
    "LabSpecError",
    "LabWorkload",
    "add_workload",
    "down",
    "entered",
    "find",
    "list_labs",
    "load",
    "log_of",
    "names",
    "remove_workload",
    "run_in",
    "up",
    "write_manifests",
]
