"""What the tests of 8-bit models share: the shipped checkpoint, images of CIFAR-10, and how much may be lost."""

import pytest
import torch

from blobs import NANO_CHECKPOINT
from focusvit_hf.hub.checkpoints import load_checkpoint


IMAGES = 1000
# Of 1,000 images a handful changes its answer; on all 10,000 the loss is below 0.1 points (benchmarks/export.py).
LARGEST_LOSS = 0.01
SMALLEST_AGREEMENT = 0.98
# Bytes of the checkpoint's weights in float32.
UNQUANTIZED_SIZE = 4 * load_checkpoint(str(NANO_CHECKPOINT))[0].num_parameters()


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint(str(NANO_CHECKPOINT))


@pytest.fixture(scope="module")
def reference(checkpoint, cifar10_test):
    """Images, classes, pixels, maps, and the classes that the model in float32 finds."""
    images, classes = cifar10_test(IMAGES)
    model, processor = checkpoint
    prepared = processor(list(images), return_tensors="pt")
    with torch.no_grad():
        found = model(**prepared).logits.argmax(dim=1)
    return images, classes, prepared, found


def check_accuracy(logits, reference):
    _, classes, _, unquantized = reference
    found = logits.argmax(dim=1)
    assert (found == unquantized).float().mean() >= SMALLEST_AGREEMENT
    accuracies = [(answer == classes).float().mean() for answer in (found, unquantized)]
    assert accuracies[0] >= accuracies[1] - LARGEST_LOSS
