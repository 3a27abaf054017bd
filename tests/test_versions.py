"""What is promised of versions is what CI tries."""

import re

from support.processes import REPOSITORY

# Of the tests and the build, not of the package.
TOOLS = {
    "build",
    "import-linter",
    "pytest",
    "pytest-xdist",
    "ruff",
    "setuptools",
}


def test_the_lowest_versions():
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    promised = {
        f"{name}=={version}"
        for name, version in re.findall(r'"([a-z0-9-]+)>=([0-9.]+)', project)
        if name not in TOOLS
    }
    tried = (REPOSITORY / ".ci" / "lowest.txt").read_text(encoding="utf-8")
    lines = [line for line in tried.splitlines() if not line.startswith("#")]
    assert promised == set(lines)
