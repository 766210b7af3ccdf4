"""uvit-lit train: python train.py --help."""

from uvit_lit.cli import main

if __name__ == "__main__":
    main("train")
