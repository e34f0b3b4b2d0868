"""The documentation site builds without a warning and without a network, and its reference is complete."""

import html
import re
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from blobs import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
    build(config)
    return folder


def words(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    article = text[text.index("<article") : text.index("</article>")]
    return html.unescape(re.sub(r"<[^>]+>", " ", article))


def test_docstrings_are_shown_without_their_marks(site: Path) -> None:
    pages = sorted((site / "reference").rglob("index.html"))
    assert len(pages) == len(list((ROOT / "docs" / "reference").glob("*.md")))
    for page in pages:
        text = words(page)
        assert "Parameters:" in text, page
        # Marks of Markdown, and references that lead nowhere.
        assert not re.findall(r".*(?:`|\*optional\*|\]\[).*", text), page


def test_defaults_and_references_of_docstrings(site: Path) -> None:
    text = (site / "reference" / "models" / "index.html").read_text(encoding="utf-8")
    row = re.search(r"<code>hidden_size</code>.*?</tr>", text, re.DOTALL)
    assert row is not None
    assert re.search(r"<code>192</code>", row[0]) and re.search(r"<code>int</code>", row[0])
    assert 'href="#focusvit_hf.modeling_focusvit.FocusViTModel"' in text


def test_plots_from_outside_the_folder_are_part_of_the_site(site: Path) -> None:
    shown = re.findall(
        r"<img[^>]*src=\"([^\"]+\.png)\"", (site / "benchmarks" / "index.html").read_text(encoding="utf-8")
    )
    named = re.findall(r"!\[[^]]*\]\((\S+\.png)\)", (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8"))
    assert len(shown) == len(named) > 0
    assert all((site / "benchmarks" / path).resolve().is_file() for path in shown)


def test_every_test_that_inputs_names_is_there() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "docs" / "inputs.md").read_text(encoding="utf-8"))
    assert len(named) > 10
    for file, test in named:
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), (file, test)
