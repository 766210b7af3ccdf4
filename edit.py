"""uvit-lit edit: python edit.py --help."""

from uvit_lit.cli.edit import main

if __name__ == "__main__":
    main()
