"""uvit-lit edit: python edit.py --help."""

from uvit_lit.cli import main

if __name__ == "__main__":
    main("edit")
