"""The kernel side: libbpf binding, maps, attachment, routes and rules."""
