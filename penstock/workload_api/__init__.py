"""The SPIFFE Workload API: a workload's own certificate over a Unix socket, for TLS of its own."""
