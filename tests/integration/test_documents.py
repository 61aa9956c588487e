"""What the documents show is run: README's Python, its commands' options, every preset for two steps."""

import re
import shlex
from pathlib import Path

import pytest

from attfc.build import new_run
from attfc.config import load_config, preset_names

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_snippets_of_the_readme_run() -> None:
    snippets = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(snippets) == 1
    for snippet in snippets:
        names: dict[str, object] = {}
        exec(compile(snippet, "README.md", "exec"), names)
        assert float(names["loss"].detach()) > 0
    body = snippets[0].split("import attfc\n")[1].strip().splitlines()
    assert len([line for line in body if line.strip()]) < 15


def test_train_commands_of_the_readme_have_known_options() -> None:
    commands = [line.partition("  #")[0] for line in README.splitlines() if line.startswith(".venv/bin/attfc train ")]
    checked = 0
    for command in commands:
        words = shlex.split(command)[2:]
        if "--resume" in words:
            continue
        preset, *overrides = [word for word in words if not word.startswith("--")]
        load_config(preset, overrides)
        checked += 1
    assert checked == 2


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_takes_two_steps(tmp_path, preset) -> None:
    run = new_run(
        load_config(
            preset,
            [
                *("data.root=synthetic:identities=64,images=4,seed=0", "data.workers=0", "data.decoded_cache_mib=0"),
                *("batch_size=16", "schedule.max_steps=2", "schedule.warmup_epochs=0", "eval.root=null", "log.every=1"),
                *("log.tensorboard=false", f"output={tmp_path}"),
            ],
        )
    )
    run.trainer.train()
    assert run.trainer.step == 2
    assert (run.folder / "model" / "model.safetensors").exists()
