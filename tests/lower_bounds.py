"""Print the lower bounds of pyproject.toml as exact versions, for pip."""

import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
print(*(bound.replace(">=", "==") for bound in project["dependencies"]))
