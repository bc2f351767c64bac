"""Builds the API reference from docstrings (`make docs`): `python docs/reference.py FOLDER`.

Whatever would leave a hole in it is an error: a warning of pdoc's, a public name without a
docstring, a reference to something that isn't on the pages.
"""

import re
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pdoc
from pdoc.doc import Class, Doc, Module
from pdoc.render_helpers import qualname_candidates

MODULES = ("ofq", "ofq.quantization")
"""The public modules; `__all__` says what is public in them."""

_LOOKS = {"show_source": False, "include_undocumented": False, "search": False}
_REFERENCE = re.compile(r":(?:mod|func|data|const|class|meth|attr|exc|obj):`([^`]+)`")


def load(name: str) -> Module:
    """Return a module's documentation, with the names in it that are imported on first use."""
    module = import_module(name)
    for each in getattr(module, "__all__", ()):
        vars(module)[each] = getattr(module, each)
    return Module(module)


def own(parent: Module | Class) -> Iterator[Doc]:
    """Yield the public members that this package defines, those of classes included."""
    for member in parent.own_members if isinstance(parent, Class) else parent.members.values():
        if not member.name.startswith("_") and member.taken_from[0].split(".")[0] == "ofq":
            yield member
            if isinstance(member, Class):
                yield from own(member)


def documented(member: Doc, module: Module) -> bool:
    """Return whether a member has a docstring, or its class's docstring lists it by name."""
    if member.docstring:
        return True
    parent = module.get(member.qualname.rpartition(".")[0])
    if not isinstance(parent, Class):
        return False
    texts = (base.__doc__ or "" for base in parent.obj.__mro__)
    listed = re.compile(rf"^ *(\w+, )*{member.name}(, \w+)*: ", flags=re.MULTILINE)
    return member.kind == "variable" and any(map(listed.search, texts))


def holes(modules: dict[str, Module]) -> Iterator[str]:
    """Yield a line for each public name without a docstring, and each reference to nothing."""
    for module in modules.values():
        for member in (module, *own(module)):
            if not documented(member, module):
                yield f"{member.fullname}: no docstring"
            for name in _REFERENCE.findall(member.docstring):
                here = any(map(module.get, qualname_candidates(name, member.qualname)))
                there = any(
                    name == each or module.get(name.removeprefix(f"{each}."))
                    for each, module in modules.items()
                )
                if not (here or there):
                    yield f"{member.fullname}: '{name}' isn't on the pages"


def build(folder: Path) -> None:
    """Write the pages to a folder, which need not exist.

    Raises:
        SystemExit: The pages would have holes.
    """
    warnings.filterwarnings("error", module="pdoc")
    modules = {name: load(name) for name in MODULES}
    if found := [*holes(modules)]:
        sys.exit("\n".join(dict.fromkeys(found)))
    pdoc.render.configure(docformat="google", **_LOOKS)
    # pdoc.pdoc would add the submodules
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in modules.items():
        path = folder / f"{name.replace('.', '/')}.html"
        path.parent.mkdir(exist_ok=True)
        path.write_text(pdoc.render.html_module(module, modules), encoding="utf-8")
    (folder / "index.html").write_text(pdoc.render.html_index(modules), encoding="utf-8")


if __name__ == "__main__":
    build(Path(sys.argv[1]))
