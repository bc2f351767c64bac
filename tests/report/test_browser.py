"""The page in a real browser, headless, from a file URL."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.required import without

pytestmark = [pytest.mark.integration, pytest.mark.slow]

# What a test looks at is put where the dumped page shows it.
PROBE = """
<script>
const errors = [];
addEventListener("error", event => errors.push(event.message));
</script>
"""
ANSWER = """
<script>
(async () => {{ {code} }})().then(answer => {{
  document.body.dataset.answer = JSON.stringify(answer);
  document.body.dataset.errors = JSON.stringify(errors);
}});
</script>
"""


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser; skipped without it, unless it is required."""
    found = shutil.which("chromium")
    if found is None:
        without("chromium", "no chromium here (Debian's package of that name)")
    return found


def ask(chromium: str, report: Path, folder: Path, code: str, *options: str, at: str = "") -> Any:
    """What JavaScript returns on the loaded page; no error may have come up."""
    text = (report / "index.html").read_text()
    page = folder / "index.html"
    page.write_text(
        text.replace("<body>", f"<body>{PROBE}").replace(
            "</body>", f"{ANSWER.format(code=code)}</body>"
        )
    )
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=2000", *options,
        "--dump-dom", f"{page.as_uri()}{at}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    answers = {
        name: json.loads(unescape(found[1]))
        for name in ("answer", "errors")
        if (found := re.search(rf'data-{name}="([^"]*)"', done.stdout))
    }
    assert answers["errors"] == []
    return answers["answer"]


def test_click_on_a_heading_sorts_and_another_turns_the_order(
    chromium: str, report: Path, tmp_path: Path
) -> None:
    code = """
        const table = [...document.querySelectorAll("table")].at(-1);
        const number = row => parseFloat(row.cells[3].textContent);
        const column = () => [...table.tBodies[0].rows].map(number);
        const orders = [];
        for (const _ of [1, 2]) { table.tHead.rows[0].cells[3].click(); orders.push(column()); }
        return orders;
    """
    up, down = ask(chromium, report, tmp_path, code)
    assert len(up) == 27
    assert up == sorted(up)
    assert down == sorted(up, reverse=True)


def test_intervals_are_sorted_by_their_lower_ends_and_what_is_missing_stays_last(
    chromium: str, report: Path, tmp_path: Path
) -> None:
    code = """
        const table = [...document.querySelectorAll("table")].at(-2);
        for (const i of [2, 5]) table.tBodies[0].rows[i].cells[6].textContent = "–";
        const column = () => [...table.tBodies[0].rows].map(row => row.cells[6].textContent);
        const orders = [];
        for (const _ of [1, 2]) { table.tHead.rows[0].cells[6].click(); orders.push(column()); }
        return orders;
    """
    for texts, downwards in zip(ask(chromium, report, tmp_path, code), (False, True), strict=True):
        lower = [text[1:].split(",")[0].replace("−", "-") for text in texts if text != "–"]
        assert len(lower) > 10
        assert texts[len(lower) :] == ["–"] * (len(texts) - len(lower))
        assert texts.count("–") == 2
        assert lower == sorted(lower, key=float, reverse=downwards)


def test_number_opens_its_runs(chromium: str, report: Path, tmp_path: Path) -> None:
    code = """
        mark();
        return [...document.querySelectorAll(".meant")].map(row => row.dataset.cell);
    """
    name = "micro/W2A2/statsq+qkr"
    assert ask(chromium, report, tmp_path, code, at=f"#{quote(name)}") == [name] * 3


def test_figure_is_shown_large_and_closed_again(
    chromium: str, report: Path, tmp_path: Path
) -> None:
    code = """
        const dialog = document.querySelector("dialog"), states = [dialog.open];
        document.querySelector(".picture img").click();
        states.push(dialog.open, dialog.querySelector("img").src.startsWith("data:image/svg+xml"));
        dialog.click();
        return [...states, dialog.open];
    """
    assert ask(chromium, report, tmp_path, code) == [False, True, True, False]


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(
    chromium: str, report: Path, tmp_path: Path, width: int
) -> None:
    # in a frame, since headless windows aren't narrower than 500 pixels
    code = """
        const frame = document.createElement("iframe");
        frame.style.cssText = "border: 0; height: 900px; width: WIDTHpx";
        const scripts = /<script>[^]*?<\\/script>/g;
        frame.srcdoc = document.documentElement.outerHTML.replace(scripts, "");
        const loaded = new Promise(resolve => frame.addEventListener("load", resolve));
        document.body.append(frame);
        await loaded;
        return [frame.contentDocument.documentElement.scrollWidth, frame.contentWindow.innerWidth];
    """
    options = ("--window-size=1400,900",)
    page, window = ask(chromium, report, tmp_path, code.replace("WIDTH", str(width)), *options)
    assert window == width
    assert page <= window
