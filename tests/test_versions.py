"""The versions of Transformers that pyproject.toml, constraints.txt and the public CI name, and its deprecations."""

import re
import tomllib
import warnings
from pathlib import Path

import pytest
import yaml
from transformers.utils import logging


ROOT = Path(__file__).resolve().parents[1]


def test_the_public_ci_runs_the_oldest_and_the_newest_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = next(
        re.match(r"transformers>=(\d+\.\d+),", line)[1] for line in project["dependencies"] if "transf" in line
    )
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    replaced = [row.get("replaced", "") for row in workflow["jobs"]["test"]["strategy"]["matrix"]["include"]]
    # Without a replacement it is the one of constraints.txt.
    assert "" in replaced
    named = [re.search(r"transformers==(\S+)", text)[1] for text in replaced if text]
    assert named == [f"{oldest}.0"]
    newest = re.search(r"^transformers==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert tuple(map(int, newest.split("."))) > tuple(map(int, named[0].split(".")))


def test_a_deprecation_that_transformers_logs_is_an_error():
    with pytest.raises(AssertionError, match="`old` is deprecated"):
        logging.get_logger("transformers.image_transforms").warning_once("`old` is deprecated: use `new`.")


@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning, PendingDeprecationWarning])
@pytest.mark.parametrize("module", ["transformers.modeling_utils", "focusvit_hf.modeling_focusvit"])
def test_a_deprecation_that_is_warned_of_is_an_error(category, module):
    with pytest.raises(category, match="old"):
        warnings.warn_explicit("old", category, "file.py", 1, module=module)
