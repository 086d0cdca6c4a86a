"""Every shipped recipe runs, and says in its header how it was run and what it measured."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))  # studies are in sub-folders: test_paper_configs.py


def test_there_are_few_of_them() -> None:
    assert 1 <= len(RECIPES) <= 12


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_runs(recipe: Path, vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path) -> None:
    header = recipe.read_text(encoding="utf-8").split("\ndata:")[0]
    assert f"vlsm train --config configs/{recipe.name}" in header
    assert "Measured" in header
    answer = vlsm(
        "train", "--config", recipe, "--data", phantoms, "--model", base_folder, "-o", tmp_path / "run",
        "--epochs", 1, "--batch-size", 4, "--set", "model.image_size=null", "--set", "train.accumulate=1",
        "--set", "train.precision=auto",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_commands_and_example_of_the_readme_run(
    vlsm: Callable, phantoms: Path, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    scope: dict = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert scope["masks"].shape == (2, *scope["image"].shape[:2])
    assert scope["masks"].dtype == bool
    assert scope["logits"].requires_grad

    photos = tmp_path / "photos"
    photos.mkdir()
    for picture in sorted((phantoms / "images").iterdir())[:2]:
        (photos / picture.name).write_bytes(picture.read_bytes())
    commands = re.findall(r"^vlsm (.+?)(?: +#.*)?$", readme, flags=re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["data", "train", "evaluate", "predict"]
    for command in commands:
        text = command.replace("photos/*.jpg", "photos/*.png").replace('"', "")
        words = [str(phantoms) if word == "DIR" else word for word in text.split()]
        words = [word.replace("DIR-tiny", f"{phantoms.name}-tiny") for word in words]
        if words[0] == "train":
            words += ["--epochs", "1", "--batch-size", "4"]
        answer = vlsm(*words)
        assert answer.code == 0, answer.err
    assert list((tmp_path / "predictions").glob("*_overlay.png"))
