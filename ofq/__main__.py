"""Entry point of the ``ofq`` command, and of ``python -m ofq``."""

import sys

from ofq.errors import UserError
from ofq.starting import start_fast


def main() -> None:
    """Run the command line, or say in one line how to install what it needs."""
    start_fast()
    try:
        from ofq.cli import main as run

        run()
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] == "ofq":
            raise
        print(
            f"error: the command `ofq` needs the package '{error.name}', which `pip install ofq` "
            'leaves out: pip install "ofq[suite]"',
            file=sys.stderr,
        )
        raise SystemExit(UserError.exit_code) from None


if __name__ == "__main__":
    main()
