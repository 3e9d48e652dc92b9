"""The xDS server: a sans-IO session core, make-before-break order, and a thin gRPC shell.

    snapshot   resources as bytes with content-hash versions; what should be in force
    watch      one type on one stream: what the client asked for, was sent, and acknowledged
    session    one stream: nonces, ordering between types, containment of bad resources
    order      a change cut into stages: make, then (after the kernel has followed) break
    server     the grpc.aio shell

Only `server` does I/O.
"""
