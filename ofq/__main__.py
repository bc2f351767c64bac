"""Entry point of ``python -m ofq``."""

from ofq.cli import main

main()
