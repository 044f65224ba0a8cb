"""The entry point of `python -m raydis VERB`."""

from raydis.cli import main

if __name__ == "__main__":
    main()
