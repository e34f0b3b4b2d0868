"""The web page draws what `explain` found; gradio, not installed here, is a stand-in that records the page."""

import importlib.util
import sys
from functools import partial
from types import SimpleNamespace

import pytest
from PIL import Image
from skimage.data import chelsea

from blobs import ROOT
from focusvit_hf import FocusViTImageProcessor
from focusvit_hf.explanation import explain
from focusvit_hf.explanation.overlays import draw_heat


@pytest.fixture(scope="module")
def app():
    spec = importlib.util.spec_from_file_location("demo_app", ROOT / "spaces" / "demo" / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def system(tiny_model):
    model = tiny_model()
    return model, FocusViTImageProcessor.from_model_config(model.config)


class PageError(Exception):
    pass


@pytest.fixture
def gradio(monkeypatch):
    def part(kind):
        return lambda **options: SimpleNamespace(kind=kind, **options)

    stand_in = SimpleNamespace(Error=PageError, **{kind: part(kind) for kind in ("Image", "Label", "Interface")})
    monkeypatch.setitem(sys.modules, "gradio", stand_in)


def test_the_page_shows_classes_regions_and_heat(app, system):
    photograph = Image.fromarray(chelsea())
    classes, regions, heat = app.answer(*system, photograph)
    explanation = explain(*system, photograph)
    assert list(classes) == explanation.ranked()["labels"]
    assert list(classes.values()) == pytest.approx(explanation.ranked()["scores"])
    assert regions.size == heat.size == photograph.size
    assert heat.tobytes() == draw_heat(explanation.image, explanation.heat()).tobytes()
    assert regions.tobytes() not in (photograph.tobytes(), heat.tobytes())
    # A large image is shown smaller, and the one that was handed in stays as it was.
    large = Image.new("RGB", (2600, 1300), (200, 0, 0))
    assert app.answer(*system, large)[1].size == (1280, 640) and large.size == (2600, 1300)


def test_the_page_is_wired_and_tells_what_went_wrong(app, system, gradio):
    page = app.build_page(partial(app.answer, *system), "FocusViT")
    assert page.inputs.type == "pil"
    assert [output.kind for output in page.outputs] == ["Label", "Image", "Image"]
    assert len(page.fn(Image.fromarray(chelsea()))) == len(page.outputs)
    with pytest.raises(PageError, match="expected an image, got none"):
        page.fn(None)
