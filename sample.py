"""uvit-lit sample: python sample.py --help."""

from uvit_lit.cli.sample import main

if __name__ == "__main__":
    main()
