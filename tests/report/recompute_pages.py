"""Hold the printed tables of a report against its CSV files, for ``recompute.py``.

Tables of the page and of ``table.md`` are found by their column headings and compared row by row,
so neither their order nor further columns matter; LaTeX has its rows in the order of ``table.csv``.
"""

import re
from html.parser import HTMLParser
from itertools import combinations

import numpy as np
import pandas as pd

MEASURES = {  # name, heading, format
    "top1": ("top-1", "top-1 (%)", ".2f"),
    "loss": ("loss", "loss", ".3g"),
    "oscillation_rate_mid": ("oscillation rate mid-run", "osc. mid-run (%)", ".2f"),
    "oscillation_rate_end": ("oscillation rate at the end", "osc. end (%)", ".2f"),
}
BESIDE = {  # heading
    "flips_mid": "flips mid-run (‰)",
    "flips_end": "flips end (‰)",
    "in_boundary_range_mid": "in boundary range mid-run (%)",
    "in_boundary_range_end": "in boundary range end (%)",
}
HEADINGS = {  # of Markdown, as the page has them
    "interval": "95 % interval",
    "control": "matched control",
    "ours": "ours (%)",
    "reported": "reported (%)",
}
GAP = re.compile(r"([+−]?\d[\d.]*)(?: points| flips)? (\[[+−][\d.]+, [+−][\d.]+\])")
SIZE = re.compile(r"(\d[\d.]*) (\[[\d.]+, [\d.]+\])(?: points)? (?:above|below)")
LATEX = {r"\ensuremath{\pm}": "±", r"{\textendash}": "–", "$-$": "−", r"\%": "%"}


def number(value, spec=".2f", signed=False):
    """Print a number; a difference has its sign unless it rounds to 0."""
    if pd.isna(value):
        return "–"
    text = f"{value:{'+' if signed else ''}{spec}}".replace("-", "−")
    return text[1:] if signed and not text.strip("+−0.") else text


def interval(row, spec=".2f", prefix=""):
    """Print a row's interval, always with signs."""
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    return "" if pd.isna(low) else f"[{low:+{spec}}, {high:+{spec}}]".replace("-", "−")


def unsigned(ends):
    """Return a printed interval without signs, the end nearer to 0 first."""
    return f"[{', '.join(sorted(re.findall(r'[0-9.]+', ends), key=float))}]"


def p_text(p):
    """Print a p-value."""
    return "–" if pd.isna(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


class Page(HTMLParser):
    """Tables of a page, each a list of rows by heading, and its text; bold is ``**``."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.words, self.hidden, self.cell = [], [], False, None
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self.lines, self.heads = [], None
        elif tag == "tr":
            self.lines.append([])
        elif tag in ("td", "th"):
            self.cell, self.span = [], int(dict(attributes).get("colspan", 1))
        elif tag == "b" and self.cell is not None:
            self.cell.append("**")
        self.hidden = tag in ("script", "style") or self.hidden
        self.words.append(" ")

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.lines[-1] += [" ".join("".join(self.cell).split())] * self.span
            self.cell = None
        elif tag == "b" and self.cell is not None:
            self.cell.append("**")
        elif tag == "thead":
            above = zip(*self.lines, strict=True)
            self.heads = [" ".join(filter(None, names)) for names in above]
            self.lines = []
        elif tag == "table" and self.heads:
            self.tables.append(pd.DataFrame(self.lines, columns=self.heads))
        self.hidden = self.hidden and tag not in ("script", "style")

    def handle_data(self, data):
        if self.cell is not None:
            self.cell.append(data)
        if not self.hidden:
            self.words.append(data)


def plain_text(cell):
    """Return the text of a Markdown cell, spaces alike."""
    return " ".join(re.sub(r"\\(.)", r"\1", cell).split())


def markdown_tables(text):
    """Return the tables of Markdown, without escapes."""
    blocks = re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE)
    lines = [
        [re.split(r"(?<!\\) \| ", line[2:-2]) for line in block.splitlines()] for block in blocks
    ]
    plain = [[[plain_text(c) for c in row] for row in block] for block in lines]
    return [pd.DataFrame(b[2:], columns=[HEADINGS.get(h, h) for h in b[0]]) for b in plain]


def latex_rows(text):
    """Return the numbers of each row of a LaTeX table."""
    for code, plain in LATEX.items():
        text = text.replace(code, plain)
    text = re.sub(r"\\textbf\{(.*?)\}", r"**\1**", text)
    rows = re.findall(r"^(?!Method|\\multicolumn|\\quad|%)(.*&.*) \\\\$", text, re.MULTILINE)
    return [[" ".join(cell.split()) for cell in row.split(" & ")[1:]] for row in rows]


class Printed:
    """What a report must print, given its study's config and its CSV files."""

    def __init__(self, study, files):
        self.study, self.files, self.many = study, files, len(study.models) > 1
        self.table = files["table"].set_index(["model", "bits", "method"])
        self.primary = "top1" if study.primary == "top1" else "loss"
        measures = [self.primary, *list(MEASURES)[2:]]
        self.shown = [m for m in measures if self.table[f"{m}_mean"].notna().any()]

    def row(self, row, **texts):
        """Return a row of a table, with its model if there are several."""
        return ({"model": row["model"]} if self.many else {}) | texts

    def entry(self, place, key):
        """Return an entry of the study's table."""
        if place not in self.table.index:
            return "–"
        row = self.table.loc[place]
        if row["n"] == 0:
            return row["missing"]
        if key == "megabytes":
            return number(row[key], ".3g")
        spec = MEASURES[key][2]
        text = number(row[f"{key}_mean"], spec)
        text += "" if pd.isna(row[f"{key}_std"]) else f" ± {number(row[f'{key}_std'], spec)}"
        damaged = f"; {row['missing']}" if str(row["missing"]).startswith("damaged") else ""
        text += "" if pd.isna(row["missing"]) else f" (n = {row['n']}{damaged})"
        return f"**{text}**" if row["best"] and key == self.primary else text

    def study_table(self):
        """Yield each row of the study's table: model, label, entries by bits and key."""
        keys = [*self.shown, *(["megabytes"] if "megabytes" in self.table else [])]
        methods = dict.fromkeys(method for *_, method in self.study.cells)
        for model in self.study.models:
            for method in methods:
                at = {b: (model, "FP" if method == "fp" else b, method) for b in self.study.bits}
                label = self.study.label(method)
                yield model, label, {(b, k): self.entry(c, k) for b, c in at.items() for k in keys}

    def methods(self):
        """Return the rows of the study's table, by heading."""
        heads = {key: MEASURES[key][1] for key in self.shown} | {"megabytes": "size (MB)"}
        return [
            self.row({"model": model}, method=label)
            | {f"{bits} {heads[key]}": text for (bits, key), text in entries.items()}
            for model, label, entries in self.study_table()
        ]

    def first(self):
        """Return the rows of the table on the first screen, of the primary measure alone."""
        name = MEASURES[self.primary][1]
        return [
            self.row({"model": model}, **{name: label})
            | {bits: text for (bits, key), text in entries.items() if key == self.primary}
            for model, label, entries in self.study_table()
        ]

    def differences(self):
        """Return the rows of the paired differences."""
        rows, label = [], self.study.label
        for _, row in self.files["differences"].iterrows():
            name, _, spec = MEASURES[row["measure"]]
            images, p = "–", row["p_mcnemar"]
            if row["measure"] == self.primary and pd.notna(row["gained"]):
                p = p if pd.isna(row["p_mcnemar_holm"]) else row["p_mcnemar_holm"]
                images = f"+{row['gained']:.0f} −{row['lost']:.0f}, p {p_text(p)}"
            texts = {
                "measure": name,
                "bits": row["bits"],
                "methods": f"{label(row['method'])} against {label(row['against'])}",
                "family": row["family"],
                "verdict": row["verdict"],
                "difference": number(row["mean"], spec, signed=True),
                "95 % interval": interval(row, spec) or "–",
                "p": p_text(row["p"]),
                "p, Holm": p_text(row["p_holm"]),
                "detectable": number(row["detectable"], spec),
                "seeds": str(row["n"]),
                "images (McNemar)": images,
            }
            rows.append(self.row(row, **texts))
        if all(row["images (McNemar)"] == "–" for row in rows):
            rows = [{k: v for k, v in row.items() if k != "images (McNemar)"} for row in rows]
        return rows

    def effects(self):
        """Return the rows of the effects on the primary measure."""
        name, _, spec = MEASURES[self.primary]
        found = self.files["effects"] if "effects" in self.files else pd.DataFrame({"measure": []})
        return [
            self.row(row, bits=row["bits"], effect=row["effect"], verdict=row["verdict"])
            | {f"on {name}": number(row["mean"], spec, signed=True)}
            | {"95 % interval": interval(row, spec) or "–", "p, Holm": p_text(row["p_holm"])}
            | {"seeds": str(row["n"])}
            for _, row in found[found["measure"] == self.primary].iterrows()
        ]

    def claims(self):
        """Return the rows of the claims."""
        rows = []
        for _, row in self.files.get("claims", pd.DataFrame()).iterrows():
            gap, unit = row["control_difference"], ""
            if row["measure"].startswith(("top1", "oscillation", "noise")):
                unit = " points"
            unit = " flips" if row["measure"].startswith("flips") else unit
            given = f"{number(row['difference'], signed=True)}{unit}" if row["seeds"] else "–"
            beside = f"{number(gap, signed=True)} {interval(row, prefix='control_')}".strip()
            beside = "–" if pd.isna(row["control"]) else f"{row['control']}: {beside}"
            texts = {
                "claim": row["text"],
                "verdict": row["verdict"],
                "difference": given,
                "95 % interval": interval(row) or "–",
                "matched control": beside,
                "bits": row["bits"],
                "seeds": str(row["seeds"]),
                "seeds to decide": number(row["seeds_to_decide"], ".0f"),
            }
            rows.append(self.row(row, **texts))
        return rows

    def verdicts(self):
        """Return the rows of the results against reported ones."""
        rows = []
        for _, row in self.files.get("verdicts", pd.DataFrame()).iterrows():
            off = f"off by {abs(row['difference']):.2f}"
            side = "better" if row["difference"] > 0 else "worse"
            exact = row["low"] == row["high"]
            texts = {
                "method": row["label"],
                "bits": row["bits"],
                "ours (%)": number(row["mean"]) if row["n"] else row["missing"],
                "reported (%)": number(row["reported"]),
                "difference": number(row["difference"], signed=True),
                "95 % interval": "exact" if exact else interval(row) or "–",
                "verdict": f"{off} ({side})" if row["verdict"] == "off" else row["verdict"],
                "detectable": number(row["detectable"]),
                "seeds": str(row["n"]),
                "known from": f"{row['status']}: {row['source']}",
            }
            rows.append(self.row(row, **texts))
        return rows

    def beside(self):
        """Return the rows of the methods side by side."""
        rows, (_, heading, spec) = [], MEASURES[self.primary]
        for _, row in self.files.get("baselines", pd.DataFrame()).iterrows():

            def spread(key, spec=".2f", row=row):
                std = row[f"{key}_std"]
                own = "" if pd.isna(std) else f" ± {number(std, spec)}"
                return number(row[f"{key}_mean"], spec) + own

            few = "" if pd.isna(row["missing"]) else f" (n = {row['n']})"
            texts = {"method": row["label"], "bits": row["bits"], "seeds": str(row["n"])}
            texts[heading] = spread(self.primary, spec) + few if row["n"] else row["missing"]
            for name in self.study.config["baselines"]:
                gap = number(row[f"over_{name}_mean"], spec, signed=True)
                ends = interval(row, spec, f"over_{name}_")
                texts[f"over {self.study.label(name)}"] = f"{gap} {ends}".strip()
            texts |= {heading: spread(key) for key, heading in BESIDE.items()}
            cost, *ends = (number(row[key]) for key in ("cost", "cost_low", "cost_high"))
            cost += "" if {cost} == {*ends} else f" ({'-'.join(ends)})"
            texts |= {"epochs": number(row["epochs"], ".0f"), "cost": cost}
            rows.append(self.row(row, **texts))
        return rows

    def runs(self):
        """Return the rows of the runs."""
        measures = [self.primary, *list(MEASURES)[2:]]
        return [
            self.row(row, method=row["label"], bits=row["bits"], seed=str(row["seed"]))
            | {MEASURES[m][1]: number(row[m], MEASURES[m][2]) for m in measures}
            | {"run": row["run"]}
            for _, row in self.files["runs"].iterrows()
        ]

    def gaps(self):
        """Return every difference with its interval that a sentence may quote."""
        rows = [*self.differences(), *self.claims(), *self.verdicts()]
        pairs = {(row["difference"].split()[0], row["95 % interval"]) for row in rows}
        effects = {(list(row.values())[-4], row["95 % interval"]) for row in self.effects()}
        beside = {GAP.search(row["matched control"]) for row in self.claims()} - {None}
        over = [GAP.search(text) for row in self.beside() for text in row.values()]
        pairs |= {match.groups() for match in over if match}
        return pairs | effects | {match.groups() for match in beside}

    def correlation(self):
        """Return the mean correlation over seeds of two methods, as notes quote it."""
        found = []
        for model in self.study.models:
            for bits in self.study.bits:
                table = self.study.table(model, bits, self.primary)
                pairs = [table[list(pair)].dropna() for pair in combinations(table, 2)]
                varied = [p for p in pairs if len(p) > 2 and (p.std() > 0).all()]
                found += [np.corrcoef(p.T)[0, 1] for p in varied]
        return number(np.mean(found)) if found else None


def unlike(where, tables, expected, core):
    """Return how the tables that have the headings ``core`` aren't the expected rows."""
    mine = [table for table in tables if core <= set(table.columns)]
    if not expected:
        return []
    if not mine:
        return [f"{where}: no table with columns {', '.join(sorted(core))}"]
    absent = set(expected[0]).difference(*(table.columns for table in mine))
    # Markdown leaves out what the page has room for
    problems = [f"{where}: no column '{name}'" for name in absent if where == "index.html"]
    left = list(range(len(expected)))
    for table in mine:
        columns = [c for c in expected[0] if c in table.columns]
        wanted = [tuple(row[c] for c in columns) for row in expected]
        given = list(table[columns].itertuples(index=False, name=None))
        strange = [row for row in given if row not in wanted]
        problems += [f"{where}: {' | '.join(row)}: isn't in the CSV" for row in strange]
        left = [i for i in left if wanted[i] not in given]
    return problems + [f"{where}: {' | '.join(expected[i].values())}: isn't there" for i in left]


def check_pages(study, files, report):
    """Return the numbers of a report's printed tables that aren't its CSV's, rounded."""
    printed = Printed(study, files)
    text = (report / "table.md").read_text("utf-8")
    page, problems = Page((report / "index.html").read_text("utf-8")), []
    first = f"{study.bits[0]} {MEASURES[printed.primary][1]}"
    in_both = (
        (printed.methods(), {"method", first}),
        (printed.claims(), {"claim", "verdict"}),
        (printed.verdicts(), {"reported (%)", "known from"}),
        (printed.beside(), {"epochs", "cost"}),
    )
    on_page = (
        (printed.first(), {MEASURES[printed.primary][1], study.bits[0]}),
        (printed.differences(), {"methods", "p, Holm"}),
        (printed.effects(), {"effect", "p, Holm"}),
        (printed.runs(), {"run", "seed"}),
    )
    for expected, core in in_both:
        problems += unlike("table.md", markdown_tables(text), expected, core)
    for expected, core in (*in_both, *on_page):
        problems += unlike("index.html", page.tables, expected, core)
    known = printed.gaps()
    # the sentence at the top tells sizes, without signs
    known |= {(gap.strip("+−"), unsigned(ends)) for gap, ends in known}
    gaps = {*GAP.findall(page.text), *SIZE.findall(page.text)} - known
    problems += [f"index.html: {' '.join(gap)}: isn't in the CSV" for gap in sorted(gaps)]
    notes = {*re.findall(r"correlates by (−?[\d.]+\d)", f"{text} {page.text}")}
    wanted = {printed.correlation()} - {None} if len(study.seeds) > 1 else set()
    problems += [f"notes: the mean correlation isn't {n}" for n in notes ^ wanted]
    return problems + check_latex(printed, study, report)


def check_latex(printed, study, report):
    """Return how ``table.tex`` and ``measures.tex`` differ from the CSV."""
    rows = [entries for _, _, entries in printed.study_table()]
    main = [[text for (_, key), text in row.items() if key == printed.primary] for row in rows]
    others = []
    for model in study.models:
        of_model = [entries for name, _, entries in printed.study_table() if name == model]
        for bits in study.bits:
            for row in of_model:
                own = [t for (b, key), t in row.items() if b == bits and key != printed.primary]
                others += [own] if set(own) - {"–"} else []
    problems = []
    for name, wanted in (("table.tex", main), ("measures.tex", others)):
        given = latex_rows((report / name).read_text("utf-8"))
        if given != wanted:
            strange = [row for row in given if row not in wanted]
            problems.append(f"{name}: not as in the CSV: {strange or 'number or order of rows'}")
    return problems
