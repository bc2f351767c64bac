"""What some tests need beside Python packages."""

import os

import pytest


def without(name: str, reason: str) -> None:
    """Skip the test, or fail it where ``OFQ_REQUIRE`` names what it can't do without.

    Args:
        name: What ``OFQ_REQUIRE`` calls it.
        reason: What isn't there, and where it comes from.
    """
    required = name in os.environ.get("OFQ_REQUIRE", "").split(",")
    (pytest.fail if required else pytest.skip)(reason)
