#!/usr/bin/env bash
# Make the environment in .venv/ from the lock files; `make install` runs this.
#   --uv     only say which uv that takes
#   --docs   add what the documentation is built with
#   --stores add servers of object stores for make test-stores
#   PYTHON   the interpreter to use (default: found, or fetched by uv)
#   VENV     where the environment goes (default .venv)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${VENV:-.venv}

say() { printf 'install: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# A mirror that pip was told of serves uv, too.
if [ -n "${PIP_INDEX_URL:-}" ] && [ -z "${UV_DEFAULT_INDEX:-}" ]; then export UV_DEFAULT_INDEX=$PIP_INDEX_URL; fi

# uv: the one on the PATH, else one installed into .uv/ with whatever Python 3 there is.
find_uv() {
  local each
  for each in uv .uv/bin/uv .uv/target/bin/uv; do
    if command -v "$each" >/dev/null && "$each" --version >/dev/null 2>&1; then command -v "$each"; return; fi
  done
  command -v python3 >/dev/null || fail "no python3 on the PATH: any Python 3.8 or newer with pip or venv will do to begin with"
  say "getting uv with $(python3 --version)"
  if python3 -m venv .uv >/dev/null 2>&1 && .uv/bin/python -m pip install -q uv >&2; then
    echo .uv/bin/uv
  elif rm -rf .uv && python3 -m pip install -q --target .uv/target uv >&2; then
    echo .uv/target/bin/uv
  else
    fail "could not install uv: python3 needs its venv or pip module (Debian: python3-venv), and a package index within reach"
  fi
}

# A Python that is new enough; 3.14 last, since Spark was tried less with it.
find_python() {
  local want each
  for want in 3.13 3.12 3.14; do
    "$uv" python find -q --system --no-python-downloads "$want" 2>/dev/null && return
    for each in "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$want".*/bin/python; do
      if [ -x "$each" ]; then echo "$each"; return; fi
    done
  done
  say "no Python 3.12 to 3.14 here; asking uv for one"
  if "$uv" python install 3.13 >&2 && "$uv" python find -q --system 3.13; then return; fi
  fail "no Python 3.12 or newer was found or could be fetched: install one, or name one: make install PYTHON=/path/to/python3.13"
}

uv=$(find_uv)
if [ "${1:-}" = --uv ]; then echo "$uv"; exit; fi
pip_install() { "$uv" pip install -q --compile-bytecode --python "$VENV/bin/python" "$@"; }
if [ "${1:-}" = --docs ]; then pip_install --require-hashes -r requirements-docs.lock; exit; fi
if [ "${1:-}" = --stores ]; then
  pip_install --require-hashes -r requirements-stores.lock
  # Swift wants older versions of what others need, too.
  if ! [ -x .venv-swift/bin/swift-proxy-server ]; then
    "$uv" venv -q --clear --no-project --python "$VENV/bin/python" .venv-swift
    "$uv" pip install -q --python .venv-swift/bin/python "swift==2.38.3" "setuptools<81"
  fi
  exit
fi
python=${PYTHON:-$(find_python)}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' ||
  fail "$python is $("$python" --version 2>&1), and 3.12 or newer is needed"

if ! [ "$("$VENV/bin/python" -c 'import sys; print(sys._base_executable)' 2>/dev/null)" -ef "$(
    "$python" -c 'import sys; print(sys._base_executable)')" ]; then
  say "making $VENV with $("$python" --version) ($python)"
  "$uv" venv -q --clear --no-project --python "$python" "$VENV"
fi
say "installing what requirements.lock names"
pip_install --require-hashes -r requirements.lock
pip_install --no-deps --editable .

find_java() { "$VENV/bin/python" -c 'from spark_butler.spark.java import find_java_home as f; print(f())' 2>/dev/null; }
rm -f "$VENV/bin/java"
if ! java_home=$(find_java); then
  say "no Java 17 or newer here; installing a JDK"
  pip_install --require-hashes -r requirements-java.lock
  java_home=$(unset JAVA_HOME; find_java) || fail "the JDK from requirements-java.lock does not run on this machine"
  if ! find_java >/dev/null; then say "JAVA_HOME is '$JAVA_HOME', which Spark can't use: unset it before using $VENV"; fi
fi
case $java_home in
  "$(cd "$VENV" && pwd)"/*) ln -s "$java_home/bin/java" "$VENV/bin/java" ;;
esac
touch "$VENV/.installed"
say "done: $("$VENV/bin/python" --version), $("$VENV/bin/python" -c 'import pyspark; print("PySpark", pyspark.__version__)')"
