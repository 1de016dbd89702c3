"""Names that look like something else, and files that are not what they seem."""

from pathlib import Path

import pytest

CONFIG = """
data: digits
images: 2
stages: [clean]
draws: 2
systems:
  {name}: {{purification: {{method: none}}}}
"""


@pytest.mark.parametrize("name", ["0.05", "10", "off", "null"])
def test_a_name_that_is_no_text_is_refused_before_anything_runs(name, lustral, tmp_path, capfd):
    config = tmp_path / "own.yaml"
    config.write_text(CONFIG.format(name=name))
    assert lustral("evaluate", "run", f"--config={config}") == 2
    assert "A system's name is a text" in capfd.readouterr().err
    assert not Path("run/ledger.sqlite").exists()


def test_a_configuration_in_another_encoding_gets_a_sentence(lustral, tmp_path, capfd):
    config = tmp_path / "own.yaml"
    config.write_text(CONFIG.format(name="own"), encoding="utf-16")
    assert lustral("evaluate", "run", f"--config={config}") == 2
    assert "not in UTF-8" in capfd.readouterr().err


def test_brackets_in_names_are_shown(lustral, tmp_path, capfd):
    config = tmp_path / "own.yaml"
    config.write_text(CONFIG.format(name='"own [sigma=0.1] [/null]"'))
    assert lustral("evaluate", "run", f"--config={config}") == 0
    assert "own [sigma=0.1] [/null]" in capfd.readouterr().out
