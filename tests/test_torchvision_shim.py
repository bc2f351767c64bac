"""timm imports beside a CPU build of torch; a healthy torchvision is left alone."""

import subprocess
import sys

import pytest

CHECKS = {
    "timm imports in a plain process": """
from ofq import torchvision_shim
declared = torchvision_shim.install()
import timm
assert torchvision_shim.install() is declared
""",
    "timm imports after ofq, which imports no torch by itself": """
import sys
import ofq
assert "torch" not in sys.modules
import timm
assert callable(ofq.quantize)
""",
    "timm imports after ofq where it failed before": """
try:
    import timm
except RuntimeError:
    pass
import ofq, timm
assert callable(ofq.quantize)
""",
    "ofq imports after timm": """
from ofq.torchvision_shim import install
install()
import timm, torchvision
import ofq
assert callable(ofq.quantize)
""",
    "timm imports in a loader worker": """
import torch
import ofq.quantization
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        import timm.data
        return i
if __name__ == "__main__":
    loader = torch.utils.data.DataLoader(Data(), 2, num_workers=1, multiprocessing_context="spawn")
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3]]
""",
    "an extension that loads is left alone": """
import torch
from ofq import torchvision_shim
real = torch.library.Library("torchvision", "FRAGMENT")
real.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
torch.ops.load_library = lambda path: None
assert torchvision_shim.install() is False
""",
    "without torchvision nothing happens": """
import importlib.util
from ofq import torchvision_shim
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "torchvision" else find(name, *a)
assert torchvision_shim.install() is False
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_shim(name, tmp_path):
    script = tmp_path / "check.py"
    script.write_text(CHECKS[name])
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
