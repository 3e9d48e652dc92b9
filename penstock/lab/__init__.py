"""Nodes and workloads made of network namespaces: demo, tests and bench stand on it."""
