"""What every model card of ours looks like."""

import re


PATTERN = re.compile(
    r"\A---\n.+?^---\n\n# (?P<name>[^\n]+)\n\n.*arXiv 2506\.18791.*"
    r"^## Use\n\n```python\n.*^name = \"(?P<location>[^\"]+)\"\n.*```\n.*"
    r"^## Results\n\n.*^## Model\n\n.*^## Training\n\n.*^## Limits\n\n.*^## Licence\n\n.+\n\Z",
    re.DOTALL | re.MULTILINE,
)
