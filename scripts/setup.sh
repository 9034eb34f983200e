# Sourced by the other scripts: makes .venv from requirements.lock, once, and again when the lock changes.
# Needs Python >= 3.11 and the package index; PYTHON names another interpreter.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${EMABENCH_VENV:-$root/.venv}"

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.13 python3.12 python3.11 python3 python; do
    if "$candidate" -c 'import sys; raise SystemExit(not ((3, 11) <= sys.version_info < (3, 14)))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "emabench needs Python 3.11, 3.12 or 3.13; none was found (PYTHON=/path/to/python names one)" >&2
  return 1
}

stamp="$(cat "$root/requirements.lock" "$root/pyproject.toml" | cksum)"
if [ "$(cat "$venv/.emabench-stamp" 2>/dev/null || true)" != "$stamp" ]; then
  python="$(find_python)"
  echo "setting up $venv (once; a few minutes, about 6 GB with torch's CUDA libraries)" >&2
  if ! [ -x "$venv/bin/python" ]; then
    "$python" -m venv "$venv" || {
      echo "could not create $venv; on Debian: apt install python3-venv" >&2
      exit 1
    }
  fi
  # uv installs the standard build of torch, the one that torchvision's wheel is made for.
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check 'uv>=0.5,<1' >&2
  "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" -r "$root/requirements.lock" >&2
  "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --no-deps --editable "$root" >&2
  echo "$stamp" > "$venv/.emabench-stamp"
fi
