"""The names that `focusvit_hf.training` gives away, and what loading them brings along."""

import json
import subprocess
import sys

import pytest

import focusvit_hf.training
from blobs import environment
from focusvit_hf.training.trainer import FocusViTTrainer


def test_public_names_are_those_of_their_files():
    assert focusvit_hf.training.FocusViTTrainer is FocusViTTrainer
    for name in focusvit_hf.training.__all__:
        assert getattr(focusvit_hf.training, name).__name__ == name
    assert set(focusvit_hf.training.__all__) <= set(dir(focusvit_hf.training))
    with pytest.raises(AttributeError, match=r"module 'focusvit_hf\.training' has no attribute 'Trainer'"):
        focusvit_hf.training.Trainer  # noqa: B018


def test_a_collator_can_be_had_without_trainer():
    code = """
import json, sys
import focusvit_hf.training
before = [name for name in sys.modules if name.startswith("focusvit_hf.training.")]
focusvit_hf.training.FocusViTDataCollator
files = [name.rpartition(".")[2] for name in sys.modules if name.startswith("focusvit_hf.training.")]
print(json.dumps([before, sorted(files)]))
"""
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == [[], ["augmentation", "data_collator", "selection"]]
