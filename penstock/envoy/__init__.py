"""The route model as Envoy resources (pure), and Envoy as a process."""
