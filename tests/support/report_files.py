"""What a report's folder holds: its files, and its page's tables."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of all files below a folder, by their paths in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@dataclass
class PageTable:
    """A table of a page: the heading that it stands under, and its rows by column heading."""

    heading: str
    columns: list[str] = field(default_factory=list)
    rows: list[dict[str, str]] = field(default_factory=list)


def tables_of(page: Path) -> list[PageTable]:
    """The tables of a page, in order."""
    reader = _Tables()
    reader.feed(page.read_text(encoding="utf-8"))
    return reader.found


class _Tables(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[PageTable] = []
        self.heading, self.text, self.cells = "", "", list[str]()
        self.in_head = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.found.append(PageTable(self.heading))
        elif tag in ("thead", "tbody"):
            self.in_head = tag == "thead"
        elif tag == "tr":
            self.cells = []
        if tag in ("h1", "h2", "td", "th"):
            self.text = ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("h1", "h2"):
            self.heading = self.text.strip()
        elif tag in ("td", "th"):
            self.cells.append(" ".join(self.text.split()))
        elif tag == "tr" and self.in_head:
            self.found[-1].columns = self.cells  # of the last row of headings
        elif tag == "tr":
            self.found[-1].rows.append(dict(zip(self.found[-1].columns, self.cells, strict=False)))

    def handle_data(self, data: str) -> None:
        self.text += data
