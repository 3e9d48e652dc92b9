"""`penstock ca serve` and `penstock ca token`: one CA for nodes on several machines."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import click

from penstock.cli.options import DURATION, passphrase_option

CA_DIR = click.option(
    "--ca-dir",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The CA's directory.",
)


@click.command()
@CA_DIR
@click.option(
    "--listen",
    default="[::]:7443",
    show_default=True,
    metavar="ADDRESS:PORT",
    help="Where nodes connect to, with mutual TLS.",
)
@click.option(
    "--config",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Folder of manifests that say which workload runs on which node (Workload, spec.node).",
)
@click.option("--trust-domain", default="penstock.local", show_default=True)
@click.option(
    "--metrics", metavar="ADDRESS:PORT", default="", help="Serve metrics at http://ADDRESS:PORT/metrics."
)
@passphrase_option
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
def serve(
    ca_dir: Path,
    listen: str,
    config: Path | None,
    trust_domain: str,
    metrics: str,
    ca_passphrase_file: Path | None,
    log_level: str,
) -> None:
    """Run the CA for nodes on other machines, in the foreground; it is made if there is none.

    A node joins with a token (`penstock ca token`) and gets certificates for workloads that run on it: as the
    manifests in --config say, or as its token allowed. While this is down nodes go on with what they have.
    """
    import uvloop

    from penstock.caserver import serve_forever
    from penstock.mtls import keys
    from penstock.mtls.ca import CertificateAuthority
    from penstock.observe.logs import set_up

    set_up(log_level)
    passphrase = keys.passphrase(ca_passphrase_file)
    authority = CertificateAuthority.open(ca_dir.resolve(), trust_domain, passphrase=passphrase)
    uvloop.run(serve_forever(authority, listen, config, metrics))


@click.command()
@CA_DIR
@click.option("--node", required=True, help="Name of the node that may join with it, as in `run --node`.")
@click.option(
    "--allow",
    multiple=True,
    metavar="NAMESPACE/ACCOUNT",
    help="Service accounts that the node may have beside those that manifests place on it; * matches any.",
)
@click.option("--expires", type=DURATION, default="1h", show_default=True)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), default=None, help="[default: stdout]"
)
@passphrase_option
def token(
    ca_dir: Path,
    node: str,
    allow: tuple[str, ...],
    expires: timedelta,
    out: Path | None,
    ca_passphrase_file: Path | None,
) -> None:
    """Make a join token: for one node, one use, and a while. Whoever has it is that node: keep it secret."""
    import time

    from penstock.files import write_atomically
    from penstock.mtls import keys, tokens
    from penstock.mtls.ca import opened

    authority = opened(ca_dir, keys.passphrase(ca_passphrase_file))
    made = tokens.make(authority, tokens.Grant(node, allow), expires, time.time()).text() + "\n"
    if out is None:
        click.echo(made, nl=False)
    else:
        write_atomically(out, made.encode())
