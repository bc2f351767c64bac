"""Commands that mirror run folders in MLflow."""

import os
import sys
from typing import Annotated

import typer
from rich.console import Console

from ofq.cli.common import RunId, say
from ofq.config import Workspace
from ofq.config.places import expand_uri
from ofq.errors import TryAgain

app = typer.Typer(no_args_is_help=True, help="Mirror run folders in MLflow.")


@app.command()
def sync(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="STUDY|RUN", help="Default: all run folders and reports."),
    ] = None,
    uri: Annotated[str | None, typer.Option(help="Tracking URI. Default: the site's.")] = None,
) -> None:
    """Mirror runs, and studies' reports, to a tracking URI.

    Running it again changes nothing, so it can also copy everything to another server. Exits with
    75 if something remains.
    """
    from ofq.redact import redact_uri, refuse_credentials

    if uri is not None:
        refuse_credentials(uri, "--uri")
        uri = expand_uri(uri, "--uri")
    workspace = Workspace()
    from ofq.tracking.mirror import Mirror
    from ofq.tracking.syncing import find_items, sync_items

    items = find_items(workspace, names or [])
    mirror = Mirror(uri or workspace.tracking_uri, workspace.results)
    console = Console()
    remaining = sync_items(mirror, items, console)
    text = f"mirrored {len(items) - len(remaining)} of {len(items)} to {redact_uri(mirror.uri)}"
    if remaining:
        left = " ".join(dict.fromkeys(item.name for item in remaining))
        text += f"; the rest, later: ofq track sync {left}"
    say(text)
    if remaining:
        raise typer.Exit(TryAgain.exit_code)


@app.command()
def uri() -> None:
    """Print the tracking URI, without any password."""
    from ofq.redact import redact_uri

    print(redact_uri(Workspace().tracking_uri))


@app.command()
def ui(port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000) -> None:
    """Serve MLflow's pages, to browse runs and curves."""
    from ofq.redact import redact_uri
    from ofq.tracking.mirror import comparisons
    from ofq.tracking.store import open_store

    store = Workspace().tracking_uri
    if store.startswith("http"):
        print(f"the tracking server has the pages: {redact_uri(store)}")
        return
    for name, path in comparisons(open_store(store)):
        print(f"compare the runs on {name}: http://127.0.0.1:{port}{path}")
    sys.stdout.flush()
    # in the environment, since other users can read a command line
    environment = os.environ | {"MLFLOW_BACKEND_STORE_URI": store}
    arguments = ["-m", "mlflow", "ui", "--port", str(port)]
    os.execve(sys.executable, [sys.executable, *arguments], environment)


@app.command()
def follow(run_id: RunId) -> None:
    """Mirror one run while another process trains it (`ofq train` starts this by itself)."""
    import logging

    from ofq.runs.folder import RunFolder
    from ofq.tracking import mirroring

    os.nice(10)  # training has priority
    workspace = Workspace()
    folder = RunFolder(workspace.results / "runs" / run_id)
    folder.description()  # report a wrong id immediately
    logging.basicConfig(format="%(asctime)s %(message)s", stream=sys.stderr, force=True)
    mirroring.leave_with(folder)
    from ofq.tracking.mirror import Mirror

    mirror = Mirror(workspace.tracking_uri, workspace.results)
    if not mirroring.follow(mirror, folder):
        raise typer.Exit(TryAgain.exit_code)
