"""``python -m ofq``."""

from ofq.cli import main

main()
