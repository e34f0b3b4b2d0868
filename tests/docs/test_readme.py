"""What the README claims is what was measured, and it stays short enough to be read."""

import json
import re

import pytest

from blobs import ROOT
from focusvit_hf.cli.__main__ import main


README = (ROOT / "README.md").read_text(encoding="utf-8")
PROSE = " ".join(README.split())


def figure(pattern: str, prose: str = PROSE) -> list[float]:
    found = re.search(pattern, prose)
    assert found is not None, pattern
    return [float(value) for value in found.groups()]


def test_at_most_900_words_before_the_links() -> None:
    assert len(README[: README.index("## Where to read on")].split()) <= 900


def test_its_images_are_there_and_small() -> None:
    sizes = [(ROOT / name).stat().st_size for name in re.findall(r"!\[[^]]+\]\((docs/[^)]+)\)", README)]
    assert len(sizes) == 2 and (ROOT / "docs" / "segment.jpg").stat().st_size < 150_000


def test_throughput_and_latency_are_those_of_the_committed_result() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "users-cpu.json").read_text())["rows"]

    def times_faster(row: str, name: str) -> float:
        times = rows[row]["times"]
        return round(times["ViT-Ti/16"]["median_ms"] / times[name]["median_ms"], 1)

    latent = "focusvit-tiny-latent"
    claimed = figure(r"processes ([\d.]+) \(full attention\) to ([\d.]+) \(latent attention\) times")
    assert claimed == [times_faster("jpeg", name) for name in ("focusvit-tiny-full", latent)]
    single = figure(r"A single image .*?: ([\d.]+) times the speed .*?, ([\d.]+) in ONNX Runtime")
    assert single == [times_faster(row, latent) for row in ("single", "onnx-alone")]


def test_accuracies_are_those_of_the_committed_tables() -> None:
    rows = json.loads((ROOT / "experiments" / "tables" / "imagenette-tiny-checkpoints.json").read_text())["rows"]
    own = {row["checkpoint"]: row for row in rows if row["own"]}
    model, dense = own["imagenette-tiny-20"], own["imagenette-tiny-dense"]
    difference = model["difference"]
    claimed = figure(
        r"reaches ([\d.]+) % and the dense ViT ([\d.]+) %, a difference of ([\d.]+) points .*?\[([\d.]+), ([\d.]+)\]"
    )
    measured = [model["accuracy"], dense["accuracy"], *(difference[key] for key in ("mean", "low", "high"))]
    assert all(abs(100 * value - said) <= 0.05 + 1e-9 for value, said in zip(measured, claimed, strict=True))


def test_the_figures_of_outlines_are_those_of_the_committed_table() -> None:
    table = (ROOT / "experiments" / "tables" / "borders.md").read_text(encoding="utf-8")
    nearest, low, high = figure(r"score ([\d.]+) points of IoU \[([\d.]+), ([\d.]+)\]")
    (best,) = figure(r"and ([\d.]+) points more than the grid with its best upsampling")
    assert f"| a logit a token, nearest | 36 | imagenette | nearest | +{nearest} [+{low}, +{high}] |" in table
    assert f"the grid's best upsampling | 36 | imagenette | bicubic | +{best} [" in table


def test_what_guided_borders_add_is_what_the_shipped_segmenter_gains() -> None:
    guide = " ".join((ROOT / "docs" / "guides" / "segment.md").read_text(encoding="utf-8").split())
    rows = json.loads((ROOT / "experiments" / "tables" / "dense-edges.json").read_text())["rows"]
    (gained,) = (row for row in rows if (row["split"], row["upsampling"]) == ("test", "guided"))
    claimed = figure(r"test images that adds ([\d.]+) points of IoU and ([\d.]+) of the F of the border", guide)
    measured = [100 * gained[f"{name}_difference"]["mean"] for name in ("iou", "boundary_f")]
    assert claimed == [round(value, 1) for value in measured]


def test_figures_of_checkpoints_are_those_of_their_cards() -> None:
    rows = re.findall(r"\]\((model_cards/[\w-]+/README.md)\).* (accuracy|mean IoU) (0\.\d+) on", README)
    assert len(rows) == len(list((ROOT / "model_cards").glob("*/README.md")))
    for card, metric, figure in rows:
        name = metric.lower().replace(" ", "_")
        value = re.search(rf"^{name}: ([\d.]+)$", (ROOT / card).read_text(encoding="utf-8"), re.MULTILINE)
        assert value is not None and f"{float(value[1]):.3f}" == figure, card


def test_every_file_at_the_root_has_its_place_in_contributing() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files = {path.name for path in (ROOT / "src" / "focusvit_hf").glob("*.py")} - {"__init__.py"}
    folders = {f"{path.parent.name}/" for path in (ROOT / "src" / "focusvit_hf").glob("*/__init__.py")}
    assert not [name for name in sorted(files | folders) if f"`{name}`" not in table]


def test_every_command_has_its_row(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["no such command"])
    choices = re.search(r"choose from (.*)\)", capsys.readouterr().err)
    assert choices is not None
    known = {name.strip("' ") for name in choices[1].split(",")}
    assert set(re.findall(r"^\| `focusvit (\w+)` ", page, re.MULTILINE)) == known


def test_prose_says_image() -> None:
    """The field's word; names of files, tests and options are code and keep theirs."""
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.search(r"\bpictures?\b", prose, re.IGNORECASE), page
