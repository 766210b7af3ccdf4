"""Fuzz by hand: ``make fuzz N=20000``; one case: ``python tests/fuzz --target ckpt --first 17``."""

import argparse
import os
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def main() -> None:
    """Run cases until the count is reached; print what was found, and how much was tried."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--target", help="one alone")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")

    from files import SHARES, all_targets
    from harness import findings

    sys.argv = ["train.py"]
    started, tried = time.monotonic(), Counter()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        targets = all_targets(root, root / "output")
        targets = [target for target in targets if args.target in (None, target.name)]
        total = sum(SHARES.get(target.name, 1) for target in targets)
        found = 0
        for target in targets:
            count = max(round(args.cases * SHARES.get(target.name, 1) / total), 1)
            cases = range(args.first, args.first + count)
            begun = time.monotonic()
            for _, text in findings(target, args.seed, cases, root, root / "output"):
                found += 1
                print(text, end="\n\n", flush=True)
            tried[target.name] = count
            print(f"{target.name}: {count} cases in {time.monotonic() - begun:.0f} s", flush=True)
    seconds = time.monotonic() - started
    print(f"seed {args.seed}: {sum(tried.values())} cases, {found} findings, {seconds:.0f} s")
    sys.stdout.flush()
    os._exit(found > 0)  # threads of what was broken do not matter


main()
