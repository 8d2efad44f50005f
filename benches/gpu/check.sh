#!/usr/bin/env bash
# Checks and times kontext on this machine's GPU. It requires the folder built by `cargo xtask gpu-kit`, an
# NVIDIA driver, and a python3 with torch 2.11.0; no Rust and no network.
#
#   bash check.sh KIT OUT [--cpu] [--only STAGE,…] [--model DIR]
#
# KIT is the kit's folder; OUT receives results.json, log.txt and images. `--cpu` runs the same stages at tiny
# sizes on the CPU. `python3 run.py --help` lists the stages. PYTHON names an interpreter other than python3.
set -euo pipefail

if (($# < 2)); then
    sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
command="bash benches/gpu/check.sh $*"
kit=$(realpath "$1") out=$(realpath -m "$2")
shift 2
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
python=${PYTHON:-python3}
mkdir -p "$out"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The opponents' wheels, without their dependencies: those are installed, or a row reports the missing one.
site=$work/site
if ! "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check \
    --target "$site" "$kit"/wheels/*.whl; then
    printf 'the wheels could not be installed; what needs them will fail\n' >&2
fi
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

"$python" - "$kit/gpu-kit.xz" "$work/gpu-kit" <<'PYTHON'
import lzma, shutil, sys
with lzma.open(sys.argv[1]) as packed, open(sys.argv[2], "wb") as program:
    shutil.copyfileobj(packed, program)
PYTHON
chmod +x "$work/gpu-kit"

# The folder of torch's libraries is enough: their rpaths lead to NVIDIA's.
if ! libraries=$("$python" -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0] + "/lib")'); then
    printf '%s has no torch; the stages will say so\n' "$python" >&2
    libraries=${LIBTORCH:+$LIBTORCH/lib}
fi

# The small model is in this script's repository; a kit outside the repository is checked without it.
model=$(realpath -m "$here/../../models/kontext-emoji")
"$python" "$here/run.py" "$kit" "$out" --program "$work/gpu-kit" --libraries "$libraries" --python "$python" \
    --fa3 "$site" --model "$model" --shown "$command" "$@"
