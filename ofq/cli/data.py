"""Commands on data sets."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from ofq.cli.common import given_path, say
from ofq.config import Workspace
from ofq.config.datasets import Download, any_of
from ofq.download import Progress, Unavailable, fetch
from ofq.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Get the files of public data sets.")


@app.callback()
def _group() -> None:
    """Keep `fetch` a command of the group, though it is the only one."""


@app.command("fetch")
def fetch_files(
    name: Annotated[
        str,
        typer.Argument(
            metavar="DATASET", help="A file in config/datasets, without .yaml: fashion_mnist."
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where to put the files. Default: data/DATASET, where runs find them.",
        ),
    ] = None,
) -> None:
    """Download a public data set, such as Fashion-MNIST (30 MB), and check it.

    Each file has to have the SHA-256 that the data set's config gives, or isn't kept. Files that
    are there already are checked and not downloaded again, so an interrupted download goes on with
    the next file. Addresses are tried in the config's order; https_proxy and http_proxy are heeded.

    Runs look in data/DATASET by themselves. Another folder is named in config/config.yaml:
    `data: {DATASET: FOLDER}`. On Debian, `apt install dataset-fashion-mnist` does instead.
    """
    workspace = Workspace()
    workspace.refuse_bundle("download data")
    whole, download = workspace.download(name)
    if download is None:
        raise UserError(
            f"data set '{name}' has no public files (key 'download' of its file in "
            f"config/datasets); allowed: {', '.join(_fetchable(workspace)) or 'none is defined'}"
        )
    folder = given_path(to, "--to") if to else workspace.fetched(whole)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else it would leave a part
    folder.mkdir(parents=True, exist_ok=True)
    try:
        _fetch_all(download, folder)
    except Unavailable as error:
        others = download.ways(whole, workspace.site_path)[:-1]
        raise UserError(f"{error}; try again later, or {any_of(others)}") from None
    say(f"data set '{whole}' is in {folder}")
    if to:
        say(f"in {workspace.site_path}, for runs to find it: data: {{{whole}: {folder.resolve()}}}")


def _fetch_all(download: Download, folder: Path) -> None:
    """Download the files that a folder lacks, and say of each what became of it."""
    for name, digest in download.files.items():
        with _progress() as progress:
            address = fetch(name, digest, download.address, folder, progress)
        size = (folder / name).stat().st_size
        say(f"{name}: {size:,} bytes, {f'from {address}' if address else 'was there'}; verified")


@contextmanager
def _progress() -> Iterator[Progress]:
    """Show a bar while a file comes, where standard output is a terminal."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    console = Console()
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("")
        yield lambda name, done, total: bar.update(
            task, description=name, completed=done, total=total
        )


def _fetchable(workspace: Workspace) -> list[str]:
    """Return the names of the data sets that can be downloaded."""
    return [name for name in workspace.dataset_names if workspace.dataset(name).download]
