"""Gates that learn figures in a dense ViT: what learns, what is chosen, and what stands in the table."""

import pytest
import torch

from experiments.selection import figures
from focusvit_hf import FocusViTForImageClassification


@pytest.fixture
def dense(tiny_config) -> FocusViTForImageClassification:
    config = tiny_config(embedding_type="patch", patch_pooling="none", layer_types=["full_attention"] * 2)
    return FocusViTForImageClassification(config).eval()


@pytest.fixture
def squares():
    """Images that are dark but for a bright square, which is the figure."""
    images = torch.randint(0, 40, (64, 3, 32, 32), dtype=torch.uint8)
    masks = torch.zeros(64, 32, 32)
    for number, (top, left) in enumerate(torch.randint(0, 3, (64, 2)).tolist()):
        masks[number, 8 * top : 8 * top + 16, 8 * left : 8 * left + 16] = 1
    return images + (masks[:, None] * 200).to(torch.uint8), masks


def test_gates_alone_learn_and_find_the_figures(dense, squares):
    images, masks = squares
    model = figures.gated(dense)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    figures.teach(model, images, masks, {**figures.RECIPE, "epochs": 60, "learning_rate": 0.05})
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"focusvit.layers.1.gate.weight", "focusvit.layers.1.gate.bias"}
    threshold = figures.chosen_threshold(model, images, masks)
    figures.set_threshold(model, threshold)
    found = figures.outcomes(model, images, masks, torch.zeros(64, dtype=torch.long))[1]
    assert found["recall"] >= figures.RECALL
    assert found["selected_share"] < 0.5


def test_controls_are_shares_of_the_figures_tokens(dense, squares):
    images, masks = squares
    everything = figures.controls(dense, images, masks, 1.0)
    assert everything == {"attention": 1.0, "middle": 1.0}
    # Of 4 x 4 patches the four in the middle; a figure of 2 x 2 has one, two or four of them.
    middle = torch.zeros(32, 32)
    middle[8:24, 8:24] = 1
    assert figures.controls(dense, images, middle.expand(64, -1, -1), 0.25)["middle"] == 1.0


def test_the_table_names_what_was_selected():
    shares = {"selected_share": 0.3, "cost_share": 0.28, "agreement": 0.9}
    rows = [
        {"images": "ECSSD", "threshold": 0.2, "recall": 0.96, "object_tokens": 0.25, **shares},
        {"images": "Imagenette", "threshold": 0.2, "accuracy": 0.77, **shares},
    ]
    text = figures.markdown({"rows": rows, "controls": {"attention": 0.5, "middle": 0.7}})
    assert "| ECSSD | 0.2 | 30.0 % | 28.0 % | 96.0 % | 90.0 % |  |" in text
    assert "| Imagenette | 0.2 | 30.0 % | 28.0 % |  | 90.0 % | 77.0 % |" in text
    assert "half or more of 25.0 % of the tokens" in text
