"""Import of the user's own modules, which register what config files name."""

import importlib
import os
import sys
import traceback

from ofq.config.run import RunConfig
from ofq.config.workspace import Workspace
from ofq.errors import UserError


def import_modules(config: RunConfig) -> None:
    """Import all modules of the user's own that a run needs.

    Raises:
        UserError: For the reasons of :func:`import_module`.
    """
    for name in config.modules:
        import_module(name, f"a {config.stage} run of {config.model} on {config.dataset}")


def import_module(name: str, whose: str) -> None:
    """Import a module that a config file names, from the checkout or as it is installed.

    Args:
        name: The module.
        whose: Owner of the name, such as ``the method``; for the errors.

    Raises:
        UserError: It can't be imported, it fails, or this is an unpacked bundle, whose code is
            never run.
    """
    Workspace().refuse_bundle(f"import '{name}'")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"can't import '{name}', the module of {whose}: {error}; "
            "install it in this environment, or put its folder on PYTHONPATH"
        ) from None
    except Exception as error:  # errors of the module's own code, such as of syntax
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"can't import '{name}', the module of {whose}: {type(error).__name__}: {error} "
            f"({place.filename}:{place.lineno})"
        ) from None
