#!/usr/bin/env bash
# Run the engine's conformance suite on several releases of PySpark, in an environment that is thrown away.
#   VERSIONS   releases, as "3.5 4.0 newest" (the default) or "4.1.2"
#   PYTHON     the interpreter, as for `make install`
# Arguments go to pytest. Java 17 is the one release that all of these run on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

uv=$(tools/install.sh --uv)
if [ -n "${PIP_INDEX_URL:-}" ] && [ -z "${UV_DEFAULT_INDEX:-}" ]; then export UV_DEFAULT_INDEX=$PIP_INDEX_URL; fi
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
VENV=$place/venv tools/install.sh
export PATH="$place/venv/bin:$PATH"
unset SPARK_HOME

failed=()
for version in ${VERSIONS:-3.5 4.0 newest}; do
  case $version in
    newest) wanted=pyspark ;;
    *.*.*) wanted="pyspark==$version" ;;
    *) wanted="pyspark==$version.*" ;;
  esac
  # PySpark 3.5 imports distutils, which setuptools brings back.
  "$uv" pip install -q --python "$place/venv/bin/python" --upgrade-package pyspark "$wanted" setuptools
  found=$(python -c 'import pyspark; print(pyspark.__version__)')
  printf '\n== PySpark %s, %s\n' "$found" "$(python --version)"
  python -m pytest -p no:cacheprovider tests/integration/test_conformance.py -k "spark or comparison" "$@" || failed+=("$found")
  python -m pytest -p no:cacheprovider tests/cli/test_start.py || failed+=("$found, by the command")
done
if [ ${#failed[@]} -gt 0 ]; then
  printf '\nfailed: PySpark %s\n' "${failed[*]}" >&2
  exit 1
fi
