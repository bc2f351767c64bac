"""What a user adds from outside the package: a quantizer, a method, and a study that uses them."""

import hashlib
import os
import subprocess
import sys

import pytest

from tests.support.own_process import run_ofq

MODULE = '''
"""A user's own weight quantizer."""
import ofq

@ofq.register_weight_quantizer("halved")
class Halved(ofq.StatsQ):
    """StatsQ with half the scale."""

    def scale(self, weight):
        return super().scale(weight) / 2
'''

METHOD = "halved: {label: Halved, weight_quantizer: halved, module: own_package.halved}\n"


@pytest.fixture
def own(checkout):
    """A checkout with a package of the user's beside it, and a study of two steps."""
    package = checkout / "own_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "halved.py").write_text(MODULE)
    (checkout / "config/methods/mine.yaml").write_text(METHOD)
    study = checkout / "config/studies/tiny.yaml"
    text = study.read_text().replace("[lsq, statsq+qkr+cga]", "[halved]")
    study.write_text(text.replace("[0, 1]", "[0]"))
    recipe = checkout / "config/recipes/small.yaml"
    text = recipe.read_text().replace("epochs: 2, batch_size: 64", "epochs: 1, batch_size: 448")
    recipe.write_text(text)
    return checkout


def ofq(folder, *arguments, path=None):
    own = {"PYTHONPATH": str(path or folder), "COLUMNS": "200"}
    return run_ofq(folder, *arguments, env=os.environ | own)


@pytest.mark.slow
def test_own_quantizer_is_in_the_grid_and_trains(own):
    fp, halved = ofq(own, "runs", "tiny").stdout.split()[::2]
    assert "w2a2-halved-s0" in halved
    for run in (fp, halved):
        done = ofq(own, "train", "--no-track", run)
        assert done.returncode == 0, done.stderr
    assert "training 2 steps" in done.stdout
    examined = ofq(own, "doctor", halved)
    assert "own_package.halved is as it was" in examined.stdout
    module = own / "own_package" / "halved.py"
    digest = hashlib.sha256(module.read_bytes()).hexdigest()
    origin = ofq(own, "explain", "tiny", "W2A2/halved").stdout
    assert f"+own_package.halved@{digest[:8]}" in origin
    module.write_text(MODULE.replace("/ 2", "/ 8"))
    assert "own_package.halved has changed since" in ofq(own, "doctor", halved).stdout


@pytest.mark.slow
def test_run_that_failed_by_an_own_module_may_be_tried_when_that_is_mended(own):
    fp, halved = ofq(own, "runs", "tiny").stdout.split()[::2]
    assert ofq(own, "train", "--no-track", fp).returncode == 0
    module = own / "own_package" / "halved.py"
    module.write_text(MODULE.replace("/ 2", "* (float('nan') if self.training else 0.5)"))
    assert ofq(own, "train", "--no-track", halved).returncode == 3
    assert "with this same code" in ofq(own, "train", "--no-track", halved).stderr
    module.write_text(MODULE)
    assert ofq(own, "train", "--no-track", halved).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("def broken(:", "SyntaxError"),
        ("import ofq\n\nofq.nothing", "AttributeError"),
        (MODULE.replace("(ofq.StatsQ)", ""), "is no ofq.WeightQuantizer"),
    ],
    ids=["syntax", "name", "class"],
)
def test_mistake_in_an_own_module_is_named_with_its_place(own, code, told):
    fp, halved = ofq(own, "runs", "tiny").stdout.split()[::2]
    ofq(own, "train", "--no-track", fp)
    (own / "own_package" / "halved.py").write_text(code)
    done = ofq(own, "train", "--no-track", halved)
    assert done.returncode == 2
    assert "own_package.halved" in done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_module_that_cannot_be_imported_is_explained(own, tmp_path_factory):
    fp, halved = ofq(own, "runs", "tiny").stdout.split()[::2]
    ofq(own, "train", "--no-track", fp)
    (own / "own_package" / "halved.py").unlink()
    done = ofq(own, "train", "--no-track", halved)
    assert done.returncode == 2
    assert "own_package.halved" in done.stderr
    assert "PYTHONPATH" in done.stderr
    assert "Traceback" not in done.stderr


def test_repr_shows_bits_quantizer_and_axis_of_each_layer(checkout):
    code = """
import ofq.quantization, timm, ofq
model = timm.create_model("deit_tiny_patch16_224", depth=1)
print(ofq.quantize(model, 3, 4, qkr=True, weight_quantizer="statsq"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    parts = ["StatsQ(bits=3)", "LSQ(bits=4, axis=(-2,), signed=True)", "signed=False"]
    for part in [*parts, "LSQ(bits=4, axis=(1, 2), signed=True)", "ImageLSQ(bits=8, axis=(1,)"]:
        assert part in done.stdout
