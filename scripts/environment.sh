# Create .venv with exactly the packages in requirements.txt, and this project. Called by `make setup`.
set -eu

python=""
for candidate in "${PYTHON:-python3}" python3 python; do
  if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
  echo "headstart: Python 3.11 or newer is required: install it, or give its path as in 'make setup PYTHON=python3.12'" >&2
  exit 1
fi

if ! "$python" -m venv --clear .venv 2>/dev/null; then
  # On Debian, venv is in a separate package.
  if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update -qq && apt-get install -y -qq python3-venv
    "$python" -m venv --clear .venv
  else
    echo "headstart: 'python3 -m venv' does not work: on Debian, install the package python3-venv" >&2
    exit 1
  fi
fi
bin=.venv/bin
[ -d "$bin" ] || bin=.venv/Scripts
"$bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r scripts/uv.txt
"$bin/uv" pip sync --quiet --python "$bin/python" --require-hashes requirements.txt
"$bin/uv" pip install --quiet --python "$bin/python" --no-deps --no-build-isolation --editable .
# Compile the modules that a study imports to bytecode. Compiling all modules would take 20 seconds.
"$bin/python" -c "import timm" &
"$bin/python" -c "import stages.compare, stages.train" && "$bin/dvc" status >/dev/null 2>&1 || true
wait
"$bin/python" -m scripts.plots_page .venv/plots.html
echo "headstart: the environment is in .venv" >&2
