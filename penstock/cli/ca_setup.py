"""`penstock ca init`, `import`, `csr` and `install`: how a CA comes to be, if not by itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from penstock.cli.options import passphrase_option

if TYPE_CHECKING:
    from penstock.mtls.rotation import Rotation

FILE = click.Path(dir_okay=False, exists=True, path_type=Path)
KEY_TYPES = click.Choice(["P-256", "P-384", "Ed25519"])
directory_option = click.option(
    "--ca-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/var/lib/penstock/ca"),
    show_default=True,
    help="The CA's directory.",
)
domain_option = click.option("--trust-domain", default="penstock.local", show_default=True)
key_type_option = click.option(
    "--key-type", type=KEY_TYPES, default="P-256", show_default=True, help="Of the CA's own keys."
)


@click.command()
@directory_option
@domain_option
@key_type_option
@passphrase_option
def init(ca_dir: Path, trust_domain: str, key_type: str, ca_passphrase_file: Path | None) -> None:
    """Make a CA: a root and an intermediate. Then root.key may be taken to a safe place until a rotation."""
    from penstock.mtls import keys, setup
    from penstock.mtls.spiffe import check_trust_domain

    domain = check_trust_domain(trust_domain)
    setup.init(ca_dir, domain, keys.KeyType(key_type), keys.passphrase(ca_passphrase_file))
    click.echo(f"made a CA of {domain} in {ca_dir}; {ca_dir}/root.key may be kept offline")


@click.command("import")
@directory_option
@domain_option
@click.option("--root", type=FILE, required=True, help="The root's certificate.")
@click.option(
    "--intermediate", type=FILE, required=True, help="The issuer's certificate, then those up to the root."
)
@click.option("--key", type=FILE, required=True, help="The issuer's private key.")
@click.option("--key-passphrase-file", type=FILE, default=None, help="Of that file, if it is encrypted.")
@passphrase_option
def import_(
    ca_dir: Path,
    trust_domain: str,
    root: Path,
    intermediate: Path,
    key: Path,
    key_passphrase_file: Path | None,
    ca_passphrase_file: Path | None,
) -> None:
    """Take a CA of your own. Where one is in use already, this begins the rotation to it."""
    from penstock.mtls import keys, setup
    from penstock.mtls.spiffe import check_trust_domain

    theirs = keys.passphrase(key_passphrase_file) if key_passphrase_file else None
    brought = setup.read(root, intermediate, key, theirs)
    passphrase = keys.passphrase(ca_passphrase_file)
    _tell(setup.bring(ca_dir, brought, check_trust_domain(trust_domain), passphrase), ca_dir)


@click.command()
@directory_option
@domain_option
@key_type_option
@passphrase_option
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), default=None, help="[default: stdout]"
)
def csr(
    ca_dir: Path, trust_domain: str, key_type: str, ca_passphrase_file: Path | None, out: Path | None
) -> None:
    """Ask another CA for an intermediate: print a signing request, and keep its key for `ca install`."""
    from penstock.mtls import keys, setup
    from penstock.mtls.spiffe import check_trust_domain

    domain = check_trust_domain(trust_domain)
    made = setup.request(ca_dir, domain, keys.KeyType(key_type), keys.passphrase(ca_passphrase_file))
    if out is None:
        click.echo(made, nl=False)
    else:
        out.write_bytes(made)


@click.command()
@directory_option
@domain_option
@click.option("--root", type=FILE, required=True, help="The root's certificate.")
@click.option(
    "--intermediate", type=FILE, required=True, help="What was signed, then the certificates up to the root."
)
@passphrase_option
def install(
    ca_dir: Path, trust_domain: str, root: Path, intermediate: Path, ca_passphrase_file: Path | None
) -> None:
    """Install the intermediate that was asked for with `ca csr`.

    Where a CA is in use already, this begins the rotation to it.
    """
    from penstock.mtls import keys, setup
    from penstock.mtls.spiffe import check_trust_domain

    domain = check_trust_domain(trust_domain)
    _tell(setup.install(ca_dir, root, intermediate, domain, keys.passphrase(ca_passphrase_file)), ca_dir)


def _tell(begun: Rotation | None, ca_dir: Path) -> None:
    if begun is None:
        click.echo(f"installed in {ca_dir}")
    else:
        click.echo(f"ready: penstock ca rotate --{begun.kind} --ca-dir {ca_dir} takes the nodes to it")
