"""uvit-lit evaluate: python evaluate.py --help."""

from uvit_lit.cli import main

if __name__ == "__main__":
    main("evaluate")
