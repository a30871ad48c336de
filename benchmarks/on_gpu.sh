#!/usr/bin/env bash
# Measure the GPU path by one command: gpu.json and gpu.md, in less than 8 minutes whatever happens.
#
# usage: on_gpu.sh [--cpu] [--out FOLDER] [--parts FOLDER] [--scratch FOLDER]
#
# --cpu              dry run of every step on the CPU with tiny sizes
# --out FOLDER       default: $OUT, or gpu-results
# --parts FOLDER     the parts that prepare_gpu.sh made, at any depth; default: .gpu
# --scratch FOLDER   default: a new folder under /tmp, removed at the end
#
# Without such parts the packages are those of python3. Every step is ended at its own limit, keeps the
# figures that it has by then, and does not stop the others. The limits together are 475 s; of a dry run four times that.
# Compiled networks are measured last, in what the other steps have left.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
cpu=() slower=1 out=${OUT:-gpu-results} parts=$root/.gpu scratch=
while [ $# -gt 0 ]; do
    case $1 in
        --cpu) cpu=(--cpu) slower=4 ;;
        --out) out=$2; shift ;;
        --parts) parts=$2; shift ;;
        --scratch) scratch=$2; shift ;;
        *) sed -n 2,14p "$0" >&2; exit 2 ;;
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

unpack() { # unpack FOLDER: join the parts by their numbers
    find "$parts" -name 'site.tar.xz.[0-9]' | awk -F/ '{ print $NF "\t" $0 }' | sort | cut -f2 | tr '\n' '\0' |
        xargs -0 cat -- | tar -C "$1" -xJf -
}

if [ -n "$(find "$parts" -name 'site.tar.xz.[0-9]' 2>/dev/null)" ] && [ ${#cpu[@]} -eq 0 ]; then
    mkdir -p "$scratch/site"
    export parts
    export -f unpack
    step unpack 50 bash -o pipefail -c 'unpack "$1"' - "$scratch/site"
    export PYTHONPATH=$scratch/site:$PYTHONPATH
fi
measure gpu_slides 45
measure gpu_decode 45
measure gpu_networks 110
measure gpu_ingest 90
measure gpu_training 50
measure gpu_kill 65
left=$((470 - SECONDS / slower)) # what the other steps have not used
[ "$left" -lt 20 ] || measure gpu_compiled "$((left < 90 ? left : 90))"
timeout 10 python3 "$here/gpu_report.py" join "$out" "${cpu[@]}" --failed "${failed[@]}"
