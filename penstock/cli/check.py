"""`penstock check`: looks at the machine before the daemon does, and says for each fault what mends it."""

from __future__ import annotations

from dataclasses import asdict

import click

from penstock.cli.options import output_option
from penstock.cli.output import show


@click.command()
@output_option
def check(output: str) -> int:
    """Look whether this machine can run Penstock, and say what to mend.

    Sees the network namespace it is run in. Exits 1 if anything is `fail`.
    """
    from penstock.redirect.hostcheck import judge
    from penstock.redirect.hostprobe import probe

    findings = judge(probe())
    fit = all(finding.state != "fail" for finding in findings)
    show(
        {"ok": fit, "findings": [asdict(finding) for finding in findings]},
        output,
        columns=("CHECK", "STATE", "FOUND", "MEND"),
        rows=[(finding.name, finding.state, finding.found, finding.mend) for finding in findings],
    )
    return 0 if fit else 1
