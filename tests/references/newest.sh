#!/bin/sh
# Run the tests with the newest releases of all dependencies, without the upper bounds of pyproject.toml.
#
#     tests/references/newest.sh [PYTEST ARGUMENTS]      default: -m 'not slow'
#
# To be run once a week: what fails here fails for users when a bound is raised. The environment is made in NEWEST_VENV
# (default: a temporary folder, which is deleted). It takes the torch that pip finds first: set PIP_INDEX_URL or
# PIP_EXTRA_INDEX_URL for the build without CUDA.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
environment=${NEWEST_VENV:-$work/environment}
[ -x "$environment/bin/python" ] || "${PYTHON:-python3}" -m venv "$environment"
python=$environment/bin/python

"$python" - "$root/pyproject.toml" > "$work/requirements.txt" <<'CODE'
import re
import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
# pesq has no wheels, and needs a compiler.
extras = {name: needs for name, needs in project["optional-dependencies"].items() if name != "pesq"}
for need in sorted({*project["dependencies"], *(need for needs in extras.values() for need in needs)}):
    print(re.sub(r",?<=?\s*[\w.]+(?=\s*(;|,|$))", "", need))
CODE

"$python" -m pip install --quiet --upgrade pip
"$python" -m pip install --quiet --upgrade --upgrade-strategy eager -r "$work/requirements.txt"

echo "Newer than the bounds of pyproject.toml:"
"$python" - "$root/pyproject.toml" <<'CODE'
import importlib.metadata
import sys
import tomllib

from pip._vendor.packaging.requirements import Requirement

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
needs = {*project["dependencies"], *(need for extra in project["optional-dependencies"].values() for need in extra)}
for need in map(Requirement, sorted(needs)):
    try:
        version = importlib.metadata.version(need.name)
    except importlib.metadata.PackageNotFoundError:
        continue
    if version not in need.specifier:
        print(f"  {need.name} {version} (bounds {need.specifier})")
CODE

cd "$root"
[ $# -gt 0 ] || set -- -m "not slow"
PYTHONPATH=$root "$python" -m pytest "$@"
