"""Benchmarks that keep their raw figures."""
