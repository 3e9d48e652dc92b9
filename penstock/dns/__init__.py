"""DNS: which names a workload may ask for, what it learns by that, and the process that answers.

patterns, model, compile     pure: what policies say about names, and what the proxy is to know
question, recorded           pure: the verdict on one question, and the addresses that were learned
server, upstream, kernel     the proxy: a process of its own, which outlives the daemon
wire, process                how the daemon starts it, tells it, and hears from it
"""
