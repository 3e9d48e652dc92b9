"""Penstock: a service mesh for one Linux node, without sidecars."""

__version__ = "0.1.0"
