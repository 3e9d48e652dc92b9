"""Benchmarks: programs that measure and keep their raw figures, never asserts about time in a test.

What holds for each of them: arms that are compared run in turns within one run, so that whatever else the
machine does meets them alike; a ratio is one of medians of that run; percentiles are taken of all samples,
never of percentiles; the figures as measured are kept in a file with the machine they were measured on.

    stats      percentiles, ratios         record   the result, the machine, the file
    site       a lab with its daemons      serving  nginx, wrk, iperf3
    histogram  latency, whole              cpu      processor time
    sidecar    what to compare with        ways     the arms of `latency`
    page       its plots

    policy, l4, memory, latency, memory_sidecars    one benchmark each: `run(tell, quick=…) -> Result`
"""
