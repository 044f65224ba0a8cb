"""Compare methods at equal budget: one study a method, then fresh seeds. The command is `python -m raydis.arena`."""
