#!/usr/bin/env bash
# Prepare what on_gpu.sh needs on a machine with a GPU that reaches no package index: one archive of Python packages.
#
# usage: prepare_gpu.sh [--have FILE] [--python 3.12] [--limit MIB] [--level N] [--out FOLDER]
#
# --have FILE    names of the packages that the GPU machine has, one a line ("pip list --format freeze" there);
#                default: only PyTorch, timm and their packages, as its images have them
# --limit MIB    size that may travel, the working tree included (default 64)
# --out FOLDER   default: .gpu in the repository, which git ignores
#
# --level N      of xz (default 6; 2 is four times as fast, and a fifth larger)
#
# The packages are those that pyproject.toml needs and the machine lacks, for x86-64 Linux, installed into a folder,
# without parts that no ingest or training loads, and packed with xz into parts that may each travel: .gpu/part0, …
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
have=$here/gpu_machine_packages.txt version=3.12 limit=64 level=6 out=$root/.gpu
while [ $# -gt 0 ]; do
    case $1 in
        --have) have=$2 ;;
        --python) version=$2 ;;
        --limit) limit=$2 ;;
        --level) level=$2 ;;
        --out) out=$2 ;;
        *) sed -n 2,15p "$0" >&2; exit 2 ;;
    esac
    shift 2
done
mkdir -p "$out"
work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

target=(--target "$work/site" --python-version "$version" --implementation cp --only-binary=:all:)
for glibc in 2_39 2_35 2_34 2_31 2_28 2_27 2_24 2_17 2_12 2_5; do
    target+=(--platform "manylinux_${glibc}_x86_64")
done
target+=(--platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64)

# what the machine has is not resolved: PyTorch alone would be gigabytes to look into
python3 - "$root/pyproject.toml" "$have" > "$work/wanted.txt" <<'PYTHON'
import sys, tomllib
from pathlib import Path
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name as canonical

project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
lines = [line.strip() for line in Path(sys.argv[2]).read_text().splitlines()]
have = {canonical(Requirement(line).name) for line in lines if line and not line.startswith("#")}
decoders = ["nvidia-nvjpeg>=13", "nvidia-nvjpeg2k-cu13"]  # nvImageCodec loads them, and does not require them
for line in project["dependencies"] + project["optional-dependencies"]["bench"] + decoders:
    if canonical(Requirement(line).name) not in have:
        print(line)
PYTHON
# the whole set with its versions, without installing it
python3 -m pip install -q --dry-run --ignore-installed --report "$work/report.json" "${target[@]}" -r "$work/wanted.txt"
python3 - "$work/report.json" "$have" "$work/wanted.txt" "$version" > "$work/missing.txt" <<'PYTHON'
import json, sys
from pathlib import Path
from pip._vendor.packaging.markers import default_environment
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name as canonical

report, have_file, wanted, version = sys.argv[1:]
lines = [line.strip() for line in Path(have_file).read_text().splitlines()]
have = {canonical(Requirement(line).name) for line in lines if line and not line.startswith("#")}
found = {canonical(one["metadata"]["name"]): one["metadata"] for one in json.loads(Path(report).read_text())["install"]}
target = default_environment() | {"python_version": version, "python_full_version": f"{version}.0"}
target |= {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "extra": ""}
missing, ahead = set(), [Requirement(line) for line in Path(wanted).read_text().splitlines()]
while ahead:  # what a package of the machine needs is there as well
    needed = ahead.pop()
    name = canonical(needed.name)
    if name in have or name in missing or (needed.marker and not needed.marker.evaluate(target)):
        continue
    missing.add(name)
    ahead += [Requirement(line) for line in found[name].get("requires_dist", ())]
for name in sorted(missing):
    print(f"{name}=={found[name]['version']}")
PYTHON
echo "packages that the machine lacks:"; sed 's/^/  /' "$work/missing.txt"
python3 -m pip install -q --no-deps --no-compile "${target[@]}" -r "$work/missing.txt"

# Ray's other libraries, its web page and its Java part, and the tests, headers and static libraries of all packages
rm -rf "$work"/site/ray/{rllib,dashboard/client,jars,cpp,tune/tests,serve/_private/benchmarks,llm}
find "$work/site" \( -name __pycache__ -o -name tests -o -name include \) -type d -prune -exec rm -rf {} +
find "$work/site" \( -name '*.a' -o -name '*.pyx' -o -name '*.pdb' \) -delete
find "$work/site" -type f \( -name '*.so' -o -name '*.so.*' -o -path '*/ray/core/src/*' \) -exec strip --strip-unneeded {} + 2>/dev/null || true

tree=$(git -C "$root" ls-files -z --cached --others --exclude-standard | (cd "$root" && xargs -0 du -cb --) | awk '/total$/ { sum += $1 } END { print sum }')
room=$(((limit << 20) - tree - (1 << 20)))
[ "$room" -gt $((8 << 20)) ] || { echo "the working tree leaves no room: $((tree >> 20)) of $limit MiB" >&2; exit 1; }
rm -rf "$out"/part[0-9]*
tar -C "$work/site" --sort=name --owner=0 --group=0 --mtime=@0 -cf - . |
    xz -T1 --lzma2=preset="$level",dict=64MiB | split -b "$room" -d -a 1 --additional-suffix=.part - "$work/site.tar.xz."
number=0
for part in "$work"/site.tar.xz.*.part; do
    mkdir -p "$out/part$number"
    mv "$part" "$out/part$number/site.tar.xz.$number"
    echo "$out/part$number: $(($(stat -c %s "$out/part$number/site.tar.xz.$number") >> 20)) MiB, with $((tree >> 20)) MiB of working tree"
    number=$((number + 1))
done
[ "$number" -eq 1 ] || echo "bring one part a call, each into the same folder there, then on_gpu.sh --parts FOLDER"
