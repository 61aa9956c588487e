"""What macOS and Windows lack is not needed to open sets and models, to embed and to evaluate (training is for Linux)."""

import subprocess
import sys
from pathlib import Path

CODE = """
import asyncio, os, sys  # asyncio for Linux reads os.sysconf when it is imported
for name in ("fcntl", "resource", "pwd", "grp"):
    sys.modules[name] = None
for name in ("pread", "preadv", "sysconf", "fork", "getloadavg", "sched_getaffinity", "O_CLOEXEC", "O_NONBLOCK"):
    if hasattr(os, name):
        delattr(os, name)
import attfc
folder, packed, records, listed, model = sys.argv[1:]
for path in (folder, packed, records, listed):
    store = attfc.open_store(path)
    assert len(store) == 24, path
    assert not store.images(range(24), 56).broken, path
opened = attfc.load(model)
assert opened.embed(packed).shape == (24, 16)
found = attfc.evaluate_store(opened.module, attfc.open_store(folder), generated_pairs=20)
assert 0 <= found.figures()["accuracy"] <= 1
"""


def test_without_what_other_systems_lack(tmp_path: Path) -> None:
    import attfc
    from attfc.data.convert import convert_store

    store = attfc.SyntheticFaces(8, 3)
    for kind, name in (("folder", "folder"), ("packed", "faces.attfc"), ("rec", "records")):
        convert_store(store, tmp_path / name, kind=kind)
    lines = [
        f"folder/{path.relative_to(tmp_path / 'folder').as_posix()}\t{path.parent.name}" for path in images(tmp_path)
    ]
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    model = attfc.save_model(tmp_path / "model", attfc.create_backbone("r6_tiny", embedding_size=16))
    paths = [tmp_path / "folder", tmp_path / "faces.attfc", tmp_path / "records", tmp_path / "list.txt", model]
    done = subprocess.run([sys.executable, "-c", CODE, *map(str, paths)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def images(root: Path) -> list[Path]:
    return sorted((root / "folder").rglob("*.jpg"))
