"""Notebooks as plain Python: run in order, and written with what they print and plot.

python -m tests.support.notebooks docs/guides/notebook.ipynb     # executes it in place
"""

import base64
import contextlib
import io
import json
import sys
from pathlib import Path

from matplotlib import pyplot


def code_cells(notebook):
    """Return a notebook's code cells, in their order."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(notebook):
    """Execute the code cells one after the other; return the outputs of each.

    An output is a stream of what was printed, or a PNG of each figure that was left open.
    """
    pyplot.switch_backend("Agg")
    names = {"__name__": "__main__"}
    found = []
    for cell in code_cells(notebook):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec("".join(cell["source"]), names)
        found.append([*_stream(printed.getvalue()), *map(_picture, pyplot.get_fignums())])
        pyplot.close("all")
    return found


def text(outputs):
    """Return what a cell printed."""
    return "".join("".join(each["text"]) for each in outputs if each["output_type"] == "stream")


def _stream(printed):
    lines = printed.splitlines(keepends=True)
    return [{"name": "stdout", "output_type": "stream", "text": lines}] if lines else []


def _picture(number):
    file = io.BytesIO()
    pyplot.figure(number).savefig(file, format="png", dpi=80, metadata={"Software": None})
    picture = base64.b64encode(file.getvalue()).decode()
    return {
        "data": {"image/png": picture, "text/plain": ["<Figure>"]},
        "metadata": {},
        "output_type": "display_data",
    }


def main(path):
    """Execute a notebook and write it back with its outputs."""
    notebook = json.loads(path.read_text())
    for number, (cell, outputs) in enumerate(
        zip(code_cells(notebook), run(notebook), strict=True), 1
    ):
        cell |= {"execution_count": number, "outputs": outputs}
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
