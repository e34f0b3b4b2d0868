"""A folder by `save_for_hub`: loaded with the package and, where there is none, with the code it brings."""

import ast
import builtins
import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    dynamic_module_utils,
    pipeline,
)
from transformers.dynamic_module_utils import (
    get_class_from_dynamic_module,
    get_imports,
    get_relative_import_files,
    get_relative_imports,
)

from focusvit_hf import (
    FocusViTBackbone,
    FocusViTConfig,
    FocusViTForImageClassification,
    FocusViTForSemanticSegmentation,
    FocusViTImageProcessor,
    FocusViTModel,
)
from focusvit_hf.hub.folder import code_files, save_for_hub
from focusvit_hf.hub.push import push_to_hub
from hub_stand_in import stand_in
from processes import run_command


NAMES = ["cat", "astronaut", "cup", "rocket", "other"]
FILES = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "training_log.json"}


@pytest.fixture
def model(tiny_model):
    return tiny_model(id2label=dict(enumerate(NAMES)), label2id={name: index for index, name in enumerate(NAMES)})


@pytest.fixture
def image_processor(model):
    return FocusViTImageProcessor.from_model_config(model.config)


@pytest.fixture
def saved(model, image_processor, tmp_path):
    log = {"command": "python train.py", "figures": {"test_accuracy": 0.5}}
    return save_for_hub(model, image_processor, tmp_path / "saved", training_log=log, license="apache-2.0")


@pytest.fixture
def images(photographs):
    images = [Image.fromarray(image) for image in photographs.permute(0, 2, 3, 1).numpy()]
    return [image.resize((90 + 20 * index, 140 - 10 * index)) for index, image in enumerate(images)]


@pytest.fixture
def expected(model, image_processor, images):
    with torch.no_grad():
        return model(**image_processor(images, return_tensors="pt")).logits


def scores(answers):
    return [[{entry["label"]: entry["score"] for entry in answer}[name] for name in NAMES] for answer in answers]


def test_importing_the_package_loads_neither_training_nor_data():
    heavy = ["datasets", "evaluate", "pandas", "peft", "matplotlib", "transformers.trainer", "focusvit_hf.training"]
    code = f"import sys, focusvit_hf, focusvit_hf.hub; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_folder_with_code_under_other_names_loads(saved, expected, images, tmp_path, monkeypatch):
    """What was saved by an earlier version: its files are its own, whatever they are called here today."""
    earlier = {"images": "pictures", "caching": "tables", "superpixel_options": "layouts"}
    for file in saved.glob("*.py"):
        text = file.read_text(encoding="utf-8")
        for name, old in earlier.items():
            text = text.replace(f"from .{name} import", f"from .{old} import")
        file.write_text(text, encoding="utf-8")
    for name, old in earlier.items():
        (saved / f"{name}.py").rename(saved / f"{old}.py")
    # As where the package does not know the kind of model: the code of the folder runs.
    entry = "modeling_focusvit.FocusViTForImageClassification"
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    model = get_class_from_dynamic_module(entry, saved).from_pretrained(saved)
    kind = get_class_from_dynamic_module("image_processing_focusvit.FocusViTImageProcessor", saved)
    assert type(model) is not FocusViTForImageClassification and kind is not FocusViTImageProcessor
    with torch.no_grad():
        assert torch.equal(model(**kind.from_pretrained(saved)(images, return_tensors="pt")).logits, expected)
    # With the package its own code runs, and the folder can be pushed with the code that it has.
    loaded = AutoModelForImageClassification.from_pretrained(saved)
    assert type(loaded) is FocusViTForImageClassification
    assert set(push_to_hub(saved, "me/mine", dry_run=True).files) == {path.name for path in saved.iterdir()}


@pytest.mark.parametrize("kind", [FocusViTForSemanticSegmentation, FocusViTBackbone])
def test_the_code_of_a_folder_gives_dense_outputs(kind, tiny_config, photographs, tmp_path, monkeypatch):
    model = kind(tiny_config(num_labels=3)).eval()
    image_processor = FocusViTImageProcessor.from_model_config(model.config)
    folder = save_for_hub(model, image_processor, tmp_path / "saved")
    entry = json.loads((folder / "config.json").read_text())["auto_map"]
    auto = "AutoBackbone" if kind is FocusViTBackbone else "AutoModelForSemanticSegmentation"
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    # What was imported from the cache of another test would be looked for there.
    for module in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, module)
    remote = get_class_from_dynamic_module(entry[auto], folder)
    assert remote is not kind and remote.__name__ == kind.__name__
    inputs = image_processor(photographs[0].numpy(), return_tensors="pt")
    with torch.no_grad():
        expected, found = (one.eval()(**inputs).to_tuple()[0] for one in (model, remote.from_pretrained(folder)))
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)
    tag = "image-feature-extraction" if kind is FocusViTBackbone else "image-segmentation"
    assert ModelCard.load(folder / "README.md").data.pipeline_tag == tag
    if kind is FocusViTForSemanticSegmentation:
        assert 'segment = pipeline("image-segmentation", model=name' in (folder / "README.md").read_text()
        assert (
            len(
                pipeline("image-segmentation", model=str(folder))(
                    Image.fromarray(photographs[0].permute(1, 2, 0).numpy())
                )
            )
            > 0
        )


def test_the_folder_holds_the_model_its_card_and_its_code(saved):
    code = {path.name for path in code_files()}
    assert {path.name for path in saved.iterdir()} == FILES | code
    assert {"configuration_focusvit.py", "image_processing_focusvit.py", "modeling_focusvit.py"} < code
    package = Path(sys.modules["focusvit_hf"].__file__).parent
    assert all((saved / name).read_bytes() == (package / name).read_bytes() for name in code)
    assert code == {path.name for path in package.glob("*.py")} - {"__init__.py"}
    entries = [package / f"{name}.py" for name in ("modeling_focusvit", "image_processing_focusvit")]
    assert {Path(file).name for entry in entries for file in get_relative_import_files(entry)} < code
    assert ModelCard.load(saved / "README.md").data.license == "apache-2.0"


@pytest.mark.parametrize("file", sorted(code_files()), ids=lambda path: path.stem)
def test_the_code_can_be_copied_flat(file):
    """The library finds each import of a sibling, and nothing is needed but what the model itself needs."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    siblings = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    assert all(node.level == 1 and node.module and "." not in node.module for node in siblings)
    assert {node.module for node in siblings} == set(get_relative_imports(file))
    needed = {name for name in get_imports(file) if name not in sys.stdlib_module_names}
    assert needed <= {"huggingface_hub", "numpy", "PIL", "torch", "transformers"}


def test_with_the_package_its_own_code_runs_and_nobody_is_asked(saved, expected, images, monkeypatch):
    def asked(*args):
        raise AssertionError("a question was asked")

    monkeypatch.setattr(builtins, "input", asked)
    for trusted in ({}, {"trust_remote_code": True}):
        assert type(AutoConfig.from_pretrained(saved, **trusted)) is FocusViTConfig
        assert type(AutoModel.from_pretrained(saved, **trusted)) is FocusViTModel
        model = AutoModelForImageClassification.from_pretrained(saved, **trusted)
        assert type(model) is FocusViTForImageClassification
        image_processor = AutoImageProcessor.from_pretrained(saved, **trusted)
        assert type(image_processor) is FocusViTImageProcessor
        with torch.no_grad():
            assert torch.equal(model(**image_processor(images, return_tensors="pt")).logits, expected)
        classify = pipeline("image-classification", model=str(saved), **trusted)
        answers = classify(images, batch_size=3, top_k=5)
        torch.testing.assert_close(torch.tensor(scores(answers)), expected.softmax(-1), atol=1e-6, rtol=0)


def environment_without_package(folder: Path, **variables: str) -> dict[str, str]:
    """Variables under which `python -S` finds what is installed here, but for this package and scikit-image."""
    folder.mkdir()
    for site in (Path(path) for path in sys.path if path.endswith("-packages")):
        for path in site.iterdir():
            if not re.search(r"focusvit|^skimage$|scikit_image|\.pth$", path.name) and path.name != "__pycache__":
                (folder / path.name).symlink_to(path)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    return {**kept, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables}


WITHOUT_PACKAGE = """
import contextlib, importlib.util, io, json, re, sys
from pathlib import Path

for name in ("focusvit_hf", "skimage"):
    assert importlib.util.find_spec(name) is None, name

import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

trusted = {"trust_remote_code": True}
images = [Image.open(f"{index}.png") for index in range(4)]
result = {}
for name in sys.argv[1:]:
    kinds = [AutoConfig, AutoModel, AutoModelForImageClassification, AutoImageProcessor]
    loaded = [kind.from_pretrained(name, **trusted) for kind in kinds]
    model, image_processor = loaded[2:]
    with torch.no_grad():
        logits = model(**image_processor(images, return_tensors="pt")).logits
    classify = pipeline("image-classification", model=name, **trusted)
    result[name] = {
        "classes": [f"{type(thing).__module__.split('.')[0]}.{type(thing).__name__}" for thing in loaded],
        "logits": logits.tolist(),
        "answers": classify(images, batch_size=3, top_k=5),
    }

again = "again"
model.save_pretrained(again)
image_processor.save_pretrained(again)
result["saved again"] = pipeline("image-classification", model=again, **trusted)(images, top_k=5)

try:
    AutoConfig.from_pretrained(sys.argv[1])
except (ValueError, EOFError) as error:
    result["untrusted"] = str(error)
try:
    image_processor(images, superpixel_method="skimage")
except (ImportError, ValueError) as error:
    result["skimage"] = str(error)

card = Path(sys.argv[1], "README.md").read_text()
printed = io.StringIO()
with contextlib.redirect_stdout(printed):
    exec(re.search("```python\\n(.*?)```", card, re.DOTALL)[1], {})
result["card"] = printed.getvalue()
Path("result.json").write_text(json.dumps(result))
"""


def test_without_the_package_the_code_in_the_folder_gives_the_same_logits(saved, expected, images, tmp_path):
    """From the folder, and from the Hub's stand-in that it was pushed to."""
    workplace = saved.parent
    for index, image in enumerate(images):
        image.save(workplace / f"{index}.png")
    for index, name in enumerate(("cat", "dog")):
        images[index].save(workplace / f"{name}.png")
    home = str(tmp_path / "home")
    with stand_in() as server:
        server.files["me/mine"] = {path.name: path.read_bytes() for path in saved.iterdir()}
        environment = environment_without_package(
            tmp_path / "site", HF_HOME=home, HF_ENDPOINT=server.url, HF_HUB_DISABLE_XET="1"
        )
        done = run_command(
            [sys.executable, "-S", "-c", WITHOUT_PACKAGE, "saved", "me/mine"],
            cwd=workplace,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((workplace / "result.json").read_text())
    kinds = ("FocusViTConfig", "FocusViTModel", "FocusViTForImageClassification", "FocusViTImageProcessor")
    for name in ("saved", "me/mine"):
        assert result[name]["classes"] == [f"transformers_modules.{kind}" for kind in kinds]
        assert torch.equal(torch.tensor(result[name]["logits"]), expected)
        answers = torch.tensor(scores(result[name]["answers"]))
        torch.testing.assert_close(answers, expected.softmax(-1), atol=1e-6, rtol=0)
    again = torch.tensor(scores(result["saved again"]))
    torch.testing.assert_close(again, expected.softmax(-1), atol=1e-6, rtol=0)
    assert "trust_remote_code=True" in result["untrusted"]
    assert "superpixel_method='skimage' needs scikit-image" in result["skimage"]
    assert all(name in result["card"] for name in NAMES)


def test_a_backbone_is_saved_as_one(tiny_model, image_processor, images, tmp_path):
    backbone = tiny_model().focusvit
    folder = save_for_hub(backbone, image_processor, tmp_path / "backbone")
    loaded = AutoModel.from_pretrained(folder)
    inputs = image_processor(images, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).pooler_output, backbone(**inputs).pooler_output)
    assert ModelCard.load(folder / "README.md").data.pipeline_tag == "image-feature-extraction"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, None])
def test_weights_in_half_precision_compute_in_float32(tiny_model, image_processor, tmp_path, dtype):
    model = tiny_model() if dtype else tiny_model().to(torch.float16)
    folder = save_for_hub(model, image_processor, tmp_path / "half", weights_dtype=dtype)
    stored = load_file(folder / "model.safetensors")
    counts = {name for name, tensor in stored.items() if not tensor.is_floating_point()}
    assert all(name.endswith("num_batches_tracked") for name in counts)
    assert {stored[name].dtype for name in stored.keys() - counts} == {dtype or torch.float16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    loaded = AutoModelForImageClassification.from_pretrained(folder)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    for name, value in model.state_dict().items():
        expected = value if name in counts else value.to(dtype or torch.float16).float()
        assert torch.equal(loaded.state_dict()[name], expected), name
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32 if dtype else torch.float16}


@pytest.mark.parametrize(("value", "dtype"), [(1e5, torch.float16), (float("nan"), None)])
def test_weights_that_are_not_finite_are_refused(model, image_processor, tmp_path, value, dtype):
    with torch.no_grad():
        model.classifier.weight[0, 0] = value
    with pytest.raises(ValueError, match=r"expected finite weights .* in classifier.weight"):
        save_for_hub(model, image_processor, tmp_path / "new", weights_dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_belong_together_is_refused(model, image_processor, tmp_path):
    other = FocusViTImageProcessor.from_model_config(model.config, num_superpixels=9)
    with pytest.raises(ValueError, match="num_superpixels: expected 16, got 9"):
        save_for_hub(model, other, tmp_path / "new")
    for wrong in (model.config, torch.nn.Linear(1, 1), "model"):
        with pytest.raises(ValueError, match="expected a FocusViTForImageClassification or another model"):
            save_for_hub(wrong, image_processor, tmp_path / "new")
    with pytest.raises(ValueError, match="expected a FocusViTImageProcessor, got NoneType"):
        save_for_hub(model, None, tmp_path / "new")
    with pytest.raises(ValueError, match="expected license as the Hub"):
        save_for_hub(model, image_processor, tmp_path / "new", license="My Own")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(model, image_processor, saved):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(ValueError, match=r"expected a new or an empty folder, got .*saved"):
        save_for_hub(model, image_processor, saved)
    with pytest.raises(ValueError, match="expected a new or an empty folder"):
        save_for_hub(model, image_processor, saved / "config.json")
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


@pytest.mark.parametrize(
    "writer",
    [
        "transformers.PreTrainedModel.save_pretrained",
        "focusvit_hf.FocusViTImageProcessor.save_pretrained",
        "focusvit_hf.hub.folder.write_whole",
        "os.replace",
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_leaves_nothing_half_written(model, image_processor, tmp_path, monkeypatch, writer, there):
    folder = tmp_path / "new"
    if there:
        folder.mkdir()
    with monkeypatch.context() as full:

        def no_space(*args, **kwargs):
            raise OSError(errno.ENOSPC, "No space left on device")

        full.setattr(writer, no_space)
        with pytest.raises(OSError, match="No space left"):
            save_for_hub(model, image_processor, folder)
    assert not folder.exists() or list(folder.iterdir()) == []
    assert set(tmp_path.iterdir()) <= {folder}
    save_for_hub(model, image_processor, folder)


def test_saving_leaves_the_model_as_it_was(model, image_processor, saved):
    assert not hasattr(model.config, "auto_map") and model._auto_class is None
    assert FocusViTForImageClassification._auto_class is None and FocusViTConfig._auto_class is None
    assert "image_processor_type" in image_processor.to_dict()


@pytest.mark.parametrize("name", ["focusvit-nano-cifar10", "focusvit-tiny-imagenette", "focusvit-tiny-ecssd"])
def test_the_shipped_checkpoints_can_be_pushed(name):
    folder = Path(__file__).resolve().parents[2] / "model_cards" / name
    pushed = push_to_hub(folder, f"me/{name}", dry_run=True)
    assert set(pushed.files) == FILES | {path.name for path in code_files()}
