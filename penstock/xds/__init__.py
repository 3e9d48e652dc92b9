"""The xDS server: a sans-IO session core, make-before-break order, and a thin gRPC shell."""
