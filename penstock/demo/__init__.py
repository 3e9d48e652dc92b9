"""The demo: two nodes, eight things that a mesh must do, each shown and each proven.

evidence    what counts as proof, from bytes and counters alone          } pure
report      what a step found, and how it is told                        }
mesh        the lab, the daemons, the folder of manifests; always taken down
watch       what the daemons tell while the steps run
client      HTTP and TCP from inside a workload
wire        the bytes on the underlay
kernel, requests, crossing   what is shown
steps       the story, in order
"""
