#!/usr/bin/env bash
# Measure the GPU path by one command: gpu.json and gpu.md, in less than 8 minutes whatever happens.
#
# usage: on_gpu.sh [--cpu] [--out FOLDER] [--scratch FOLDER]
#
# --cpu              dry run of every step on the CPU with tiny sizes
# --out FOLDER       default: $OUT, or gpu-results
# --scratch FOLDER   default: a new folder under /tmp, removed at the end
#
# Packages come from .gpu/site.tar.xz where prepare_gpu.sh made it. Every step is ended at its own limit, keeps the
# figures that it has by then, and does not stop the others. The limits together are 465 s; of a dry run four times that.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
cpu=() slower=1 out=${OUT:-gpu-results} scratch=
while [ $# -gt 0 ]; do
    case $1 in
        --cpu) cpu=(--cpu) slower=4 ;;
        --out) out=$2; shift ;;
        --scratch) scratch=$2; shift ;;
        *) sed -n 2,12p "$0" >&2; exit 2 ;;
    esac
    shift
done
mkdir -p "$out" || exit
out=$(cd "$out" && pwd)
if [ -z "$scratch" ]; then
    scratch=$(mktemp -d) || exit
    trap 'rm -rf "$scratch"' EXIT
fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
[ ${#cpu[@]} -eq 0 ] || export CUDA_VISIBLE_DEVICES=
failed=()

step() { # step NAME LIMIT COMMAND…: run within the limit, its output in NAME.log and here
    local name=$1 limit=$(($2 * slower)) code started=$SECONDS
    shift 2
    echo "== $name (at most $limit s)"
    timeout --kill-after=5 "$limit" "$@" 2>&1 | tee "$out/$name.log"
    code=${PIPESTATUS[0]}
    echo "== $name: code $code after $((SECONDS - started)) s"
    [ "$code" -eq 0 ] || failed+=("$name:$code")
}

measure() { # measure NAME LIMIT: run a benchmark that writes its rows
    rm -f "$out/$1.json"
    step "$1" "$2" python3 "$here/$1.py" "$scratch" "$out/$1.json" "${cpu[@]}"
}

if [ -f "$root/.gpu/site.tar.xz" ] && [ ${#cpu[@]} -eq 0 ]; then
    mkdir -p "$scratch/site"
    step unpack 40 tar -C "$scratch/site" -xJf "$root/.gpu/site.tar.xz"
    export PYTHONPATH=$scratch/site:$PYTHONPATH
fi
measure gpu_slides 50
measure gpu_decode 45
measure gpu_networks 110
measure gpu_ingest 90
measure gpu_training 50
measure gpu_kill 70
timeout 10 python3 "$here/gpu_report.py" join "$out" "${cpu[@]}" --failed "${failed[@]}"
