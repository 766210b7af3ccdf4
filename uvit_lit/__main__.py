"""``python -m uvit_lit COMMAND``."""

from uvit_lit.cli import main

if __name__ == "__main__":
    main()
