"""uvit-lit sweep: python sweep.py --help."""

from uvit_lit.cli.sweep import main

if __name__ == "__main__":
    main()
