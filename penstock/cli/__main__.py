"""`python -m penstock.cli`: the command line where the script is not installed."""

from penstock.cli import main

main()
