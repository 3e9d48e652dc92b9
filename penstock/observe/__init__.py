"""Flows from the kernel and requests from Envoy."""
