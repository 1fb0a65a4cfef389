"""`python -m experiments.cli` is `crosslight`."""

from experiments.cli.main import main

main()
