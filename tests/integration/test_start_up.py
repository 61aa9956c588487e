"""Commands start no slower than they must: what does not train imports neither torch's compiler nor sympy nor matplotlib."""

import subprocess
import sys

import torch

from attfc.backbones import create_backbone
from attfc.training.model_files import save_model

SLOW = ("torch._dynamo", "matplotlib", "sympy")
if torch.__version__ < (2, 11):  # torch 2.9 and 2.10 import sympy for a torch.arange on the meta device
    SLOW = SLOW[:2]
CODE = f"""
import sys
from attfc.cli import main
for line in sys.argv[1:]:
    sys.argv = ["attfc", *line.split()]
    try:
        main()
    except SystemExit as end:
        assert not end.code, (line, end.code)
    slow = [name for name in {SLOW} if name in sys.modules]
    assert not slow, f"{{line}} imports {{slow}}"
"""


def test_commands_that_do_not_train_import_nothing_slow(tmp_path):
    save_model(tmp_path / "model", create_backbone("r6_tiny", embedding_size=16))
    faces = "synthetic:identities=5,images=3"
    lines = [
        "backbones",
        "presets",
        "options margin",
        f"data inspect {faces} --workers 0",
        f"data convert {faces} {tmp_path}/packed",
        f"data convert {faces} {tmp_path}/faces --to folder",
        f"data clean {faces} -o {tmp_path}/edits.tsv --workers 0",
        f"data preview {faces} -o {tmp_path}/preview.png",
        "plan demo --no-calibrate",
        f"embed {tmp_path}/model {tmp_path}/packed -o {tmp_path}/embeddings.npy --workers 0",
        f"evaluate {tmp_path}/model identify {tmp_path}/packed --workers 0",
        f"evaluate {tmp_path}/model all-pairs {tmp_path}/packed --workers 0",
    ]
    done = subprocess.run([sys.executable, "-c", CODE, *lines], capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]
