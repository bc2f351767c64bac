"""Fast start and end of a command: no search for garbage among what its imports make.

Imports make half a million objects that all stay. Python would look through them again and again
while they are imported, and once more at the end of the process: half of the time that torch and
timm take to import, and as long again to leave.
"""

import atexit
import gc

_USUAL = gc.get_threshold()
_RARELY = 1_000_000  # new objects between two searches


def start_fast() -> None:
    """Search for garbage rarely from here on, and not at all at the end of the process."""
    gc.set_threshold(_RARELY)
    atexit.register(gc.freeze)  # the system frees a process's memory faster


def started() -> None:
    """Search for garbage as often as usual again, but not among the objects made so far."""
    gc.freeze()
    gc.set_threshold(*_USUAL)
