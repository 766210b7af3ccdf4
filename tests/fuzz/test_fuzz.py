"""A fixed part of the fuzzing, in every run of the slow tests; ``make fuzz`` has any number."""

import sys

import pytest
from files import SHARES, all_targets
from harness import findings

CASES = 44
"""For each target that is quick: 550 in all."""


@pytest.mark.slow
def test_no_file_breaks_a_command(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    output = tmp_path / "output"
    found = [
        text
        for target in all_targets(tmp_path, output)
        for _, text in findings(
            target, 0, range(int(CASES * SHARES.get(target.name, 1))), tmp_path, output
        )
    ]
    assert not found, "\n\n".join(found)
