"""What the tests of experiments share."""

import pytest

from experiments.teacher import bank, mixed, train
from teaching import StandIn, examples


@pytest.fixture
def stand_in(monkeypatch):
    for module in (bank, mixed):
        monkeypatch.setattr(module, "EfficientNetLite0", StandIn)
    for module in (bank, train):
        monkeypatch.setattr(module, "load_examples", examples)
