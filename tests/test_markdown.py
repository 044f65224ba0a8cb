"""What tests read of a page: every command, wherever it stands, and nothing that only looks like one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.markdown import Page


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("```sh\npytest -q\n```\n", ["language sh"]),
        ("```\n$ pytest -q\n```\n", ["$ pytest -q"]),
        ("```\nRAY_AUTH_MODE=disabled ray start --head\n```\n", ["RAY_AUTH_MODE=disabled ray start --head"]),
        ("Run:\n\n    pytest -q\n", ["    pytest -q"]),
        ("- Run:\n  ```bash\n  pytest -q\n  ```\n", ["  ```bash", "  ```"]),
        ("```bash session\npytest -q\n```\n", ["```bash session", "```"]),
        ("~~~bash\npytest -q\n~~~\n", ["~~~bash", "~~~"]),
        ("Run ``pytest -q``.\n", ["Run ``pytest -q``."]),
        ("<pre>pytest -q</pre>\n", ["<pre>pytest -q</pre>"]),
        ("Then type python -m raydis.sweep again.\n", ["python -m raydis.sweep again."]),
    ],
)
def test_a_command_in_any_other_place_is_found(text: str, found: list[str], tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(text)
    page = Page(tmp_path / "page.md")
    assert page.escapes == found


def test_commands_in_tables_and_in_running_text_are_steps(tmp_path: Path) -> None:
    text = "| `pytest -q` | tests | `A=1 serve status` |\n\nFirst `ray start`, then\n`python -m\nraydis.sweep`.\n"
    (tmp_path / "page.md").write_text(text + "\n```bash\nruff check .\n```\n\nAt last `pip install .`, not `pip`.\n")
    commands = ["pytest -q", "A=1 serve status", "python -m raydis.sweep", "ruff check .", "pip install ."]
    assert Page(tmp_path / "page.md").commands == commands
