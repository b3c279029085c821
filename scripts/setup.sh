#!/usr/bin/env bash
# Make the virtual environment of `make quickstart` and `make test`: setup.sh VENV
set -euo pipefail
venv=$1
root=$(cd "$(dirname "$0")/.." && pwd)
lock="$root/requirements/cpu.txt"
stamp="$venv/.ready"
wanted=$(cat "$lock" "$root/pyproject.toml" "$0" | cksum)

up_to_date() {
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    echo "setup: $venv is up to date"
    exit 0
  fi
}

# One run at a time makes an environment. The lock is beside it, as making it empties the folder. The kernel holds it for
# descriptor 9, which the Python that takes it shares with this shell, and frees it when the last of them ends.
take_lock() {
  local lock="${venv%/}.lock"
  mkdir -p "$(dirname "$lock")"
  exec 9>>"$lock"
  "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null && return
  echo "setup: another run is making $venv, waiting for it"
  "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
}

up_to_date

python=${PYTHON:-}
for candidate in "$python" python3.11 python3 python3.12; do
  [ -n "$candidate" ] || continue
  if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
    python=$candidate
    found=yes
    break
  fi
done
if [ -z "${found:-}" ]; then
  echo "setup: needs Python 3.11 or 3.12 for the pinned CPU stack; set PYTHON=/path/to/python3.11" >&2
  exit 1
fi

take_lock
up_to_date

packages=$(grep -c == "$lock")
log="$venv/setup.log"
echo "setup: $packages pinned packages into $venv with $("$python" --version), about 2 to 4 minutes (log: $log)"
"$python" -m venv --clear "$venv"

install() {
  "$venv/bin/python" -m pip install --disable-pip-version-check --no-input "$@" 2>&1 | tee -a "$log" |
    awk -v all="$packages" '/^(Collecting|Processing) /{if (++n % 25 == 0) {print "setup:   " n " of " all " packages"; fflush()}}
                            /^Installing /{print "setup:   unpacking"; fflush()}
                            /^ERROR/{print; fflush()}'
}

# A CPU build of torch: from where pip already looks, else from PyTorch's own index.
if ! install --no-deps -r "$lock"; then
  echo "setup: trying again with PyTorch's index of CPU builds"
  install --no-deps --extra-index-url "${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}" -r "$lock"
fi
install --no-deps --no-build-isolation --editable "$root"
echo "$wanted" >"$stamp"
echo "setup: done"
