"""README's script for one's own training loop, as a program that runs."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_MODEL = """
import timm, torch
images = torch.rand(2, 3, 224, 224)
model = timm.create_model("deit_tiny_patch16_224")
"""
_TRAINING = """
optimizer = torch.optim.AdamW(model.parameters())
loss = model(images).square().mean()
"""
_CHECK = """
assert [part.role for part in tracker.summary()][:3] == ["qk", "v", "proj"]
with torch.no_grad():
    assert torch.equal(model(images), trained.eval()(images))
print("ran")
"""


def readme_script() -> str:
    """The blocks of code, in order, with a model and a training step where README has none."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## In your own training script")[2].partition("\n## ")[0]
    first, second = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    imports, _, rest = first.partition("\n")
    # compiling takes a minute, and has tests of its own
    rest = "".join(line for line in rest.splitlines(True) if not line.startswith("ofq.compile"))
    second = second.replace("...\n", _TRAINING, 1)
    second = second.replace(
        "model = ofq.load", "tracker.update(); trained = model\nmodel = ofq.load"
    )
    return "\n".join([imports, _MODEL, rest, second, _CHECK])
