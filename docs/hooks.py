"""
What the documentation site needs beside mkdocs: docstrings in Hugging Face's form, and plots from outside `docs/`.

mkdocs.yml names this file twice: as a hook of mkdocs (the `on_…` functions) and as an extension of griffe, which reads
the docstrings.
"""

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


ROOT = Path(__file__).resolve().parents[1]
# A page says `../benchmarks/results/x.png`, so that the link works in the repository, too.
_OUTSIDE = re.compile(r"\]\(\.\./((?:benchmarks|experiments)/[^)\s]+\.png)\)")
_REFERENCE = re.compile(r"\[`~?([\w.]+)`\]")
# No page describes what is in these.
_WITHOUT_PAGE = ("benchmark", "cli", "utils")
_TYPE = re.compile(r"^(\s+\w[\w, ]* )\((`.*)\):", re.MULTILINE)
# The parser ends a type at its first colon; one in a default, such as {"height": 224}, looks like this meanwhile.
_COLON = "\ua789"
_DEFAULT = re.compile(r",? *default(?:s)? to `?(.+?)`?$")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the plots that pages show and that lie outside `docs/`; a plot that is missing raises FileNotFoundError."""
    for page in files.documentation_pages():
        for path in _OUTSIDE.findall(page.content_string):
            (ROOT / path).stat()
            if files.get_file_from_path(path) is None:
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """The text of a page with links to those plots as they lie in the site; all such pages lie directly in `docs/`."""
    return _OUTSIDE.sub(r"](\1)", markdown)


class HuggingFaceDocstrings(griffe.Extension):
    """
    Reads docstrings in Hugging Face's form, "name (`str`, *optional*, defaults to `x`): …".

    Types lose their marks, defaults go into their own column, and [`Name`] links to what has that name.
    """

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        documented = [item for item in _members(pkg) if item.docstring is not None]
        paths = {item.name: item.path for item in documented}
        for item in documented:
            assert item.docstring is not None
            text = _REFERENCE.sub(lambda found: _linked(found[1], paths), item.docstring.value)
            item.docstring.value = _TYPE.sub(lambda found: f"{found[1]}({found[2].replace(':', _COLON)}):", text)
            for section in item.docstring.parsed:
                if section.kind is griffe.DocstringSectionKind.parameters:
                    for parameter in section.value:
                        _separate_default(parameter)
                elif isinstance(section.value, list):
                    for value in section.value:
                        if isinstance(getattr(value, "annotation", None), str):
                            value.annotation = _unmarked(value.annotation)


def _members(module: griffe.Object) -> list[griffe.Object]:
    """All modules, classes and functions in a module, itself first, without what is imported or has no page."""
    found = [module]
    for member in module.members.values():
        if isinstance(member, griffe.Object) and member.name not in _WITHOUT_PAGE:
            found += _members(member)
    return found


def _linked(name: str, paths: dict[str, str]) -> str:
    last = name.rpartition(".")[2]
    # Optional: what no page describes is shown without a link.
    return f'<autoref identifier="{paths[last]}" optional>`{last}`</autoref>' if last in paths else f"`{last}`"


def _separate_default(parameter: griffe.DocstringParameter) -> None:
    if not isinstance(parameter.annotation, str):
        return
    annotation, optional, rest = parameter.annotation.replace(_COLON, ":").partition(", *optional*")
    default = _DEFAULT.match(rest)
    parameter.annotation = _unmarked(annotation)
    if default:
        parameter.value = default[1]
    elif optional and parameter.value is None:
        parameter.value = "None"


def _unmarked(annotation: str) -> str:
    """A type without Markdown: it is shown as code."""
    return re.sub(r"<[^>]+>|[`*]", "", annotation)
