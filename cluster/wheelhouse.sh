#!/usr/bin/env bash
# Makes a folder of wheels that installs her2batch on a machine without a network. Run it on a machine with one, with the
# same Python version and processor as the target. docs/operations.md, "Installation without a network", has an example.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: cluster/wheelhouse.sh [--variant cpu|cuda] [--extras LIST] [--torch-wheels DIR] [--python PYTHON] OUT

  --variant       cpu (default): PyTorch without CUDA, under 1.5 GB; cuda: with NVIDIA's libraries, 3.5 GB
  --extras        extras of her2batch, separated by commas (default: serve)
  --torch-wheels  cpu variant: folder with the wheels of torch and torchvision, instead of PyTorch's index
  --python        Python that the target has too (default: python3)
  OUT             folder to write; a second run adds what is missing
TEXT
}

torch_index=https://download.pytorch.org/whl/cpu
variant=cpu extras=serve torch_wheels='' python=python3 out=''
while [ $# -gt 0 ]; do
  case $1 in
    --variant) variant=${2:-}; shift 2 ;;
    --extras) extras=${2:-}; shift 2 ;;
    --torch-wheels) torch_wheels=${2:-}; shift 2 ;;
    --python) python=${2:-}; shift 2 ;;
    -h | --help) usage; exit 0 ;;
    -*) echo "wheelhouse.sh: unknown option $1" >&2; usage >&2; exit 2 ;;
    *) [ -z "$out" ] || { echo "wheelhouse.sh: one folder only, not also $1" >&2; exit 2; }; out=$1; shift ;;
  esac
done
[ -n "$out" ] || { usage >&2; exit 2; }
case $variant in cpu | cuda) ;; *) echo "wheelhouse.sh: --variant is cpu or cuda, not '$variant'" >&2; exit 2 ;; esac
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
download=("$python" -m pip download --quiet --only-binary :all: --dest "$out")

# Versions: those of the lock file where it was made for this Python, else the newest that pyproject.toml allows.
touch "$work/versions"
if [ "$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" = 3.12 ]; then
  sed -nE 's/^([a-zA-Z0-9._-]+)(\[[^]]*\])?==([^ ]+).*/\1==\3/p' "$root/cluster/requirements.lock" > "$work/versions"
fi

if [ "$variant" = cpu ]; then  # first, from PyTorch alone: any other index has the CUDA build under the same name
  sed -i -E '/^(torch|torchvision|triton|nvidia-.*|cuda-toolkit|cuda-bindings)==/d' "$work/versions"
  if [ -n "$torch_wheels" ]; then
    cp -n "$torch_wheels"/torch-*.whl "$torch_wheels"/torchvision-*.whl "$out/"
  else
    PIP_EXTRA_INDEX_URL='' "${download[@]}" --no-deps --index-url "$torch_index" torch torchvision
  fi
  for name in torch torchvision; do
    files=("$out/$name"-*.whl)
    [ ${#files[@]} = 1 ] || { echo "wheelhouse.sh: $out holds several wheels of $name; remove the old ones" >&2; exit 1; }
    echo "$name==$(basename "${files[0]}" | cut -d- -f2)" >> "$work/versions"
  done
fi

rm -f "$out"/her2batch-*.whl
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$out" "$root"
"$python" - "$root/pyproject.toml" "$variant" "$extras" > "$work/requirements" <<'PYTHON'
"""Print what her2batch and its extras require. Without CUDA cuCIM is left out: it brings NVIDIA's libraries, and slides
are decoded on the CPU without it."""
import pathlib
import sys
import tomllib

project, variant, extras = tomllib.loads(pathlib.Path(sys.argv[1]).read_text())["project"], sys.argv[2], sys.argv[3]
required = list(project["dependencies"])
for extra in filter(None, extras.split(",")):
    if extra not in project["optional-dependencies"]:
        sys.exit(f"wheelhouse.sh: her2batch has no extra {extra}; it has {', '.join(project['optional-dependencies'])}")
    required += project["optional-dependencies"][extra]
print(*(line for line in required if variant == "cuda" or not line.startswith("cucim")), sep="\n")
PYTHON
"${download[@]}" --find-links "$out" --constraint "$work/versions" --requirement "$work/requirements"

"$python" - "$out" "$variant" <<'PYTHON'
"""Write requirements.txt, every wheel with its version and SHA-256, and refuse a folder that mixes variants."""
import hashlib
import pathlib
import sys

out, variant = pathlib.Path(sys.argv[1]), sys.argv[2]
wheels = sorted(out.glob("*.whl"))
names = [wheel.name.split("-")[0].replace("_", "-").lower() for wheel in wheels]
twice = sorted({name for name in names if names.count(name) > 1})
if twice:
    sys.exit(f"wheelhouse.sh: {out} holds two wheels of {', '.join(twice)}; make it anew in an empty folder")
if variant == "cpu" and (cuda := [name for name in names if name.startswith("nvidia-") or name == "triton"]):
    sys.exit(f"wheelhouse.sh: the cpu variant holds {', '.join(cuda)}: torch came from another index")
lines = []
for name, wheel in zip(names, wheels):
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    lines.append(f"{name}=={wheel.name.split('-')[1]} --hash=sha256:{digest}")
(out / "requirements.txt").write_text("\n".join(lines) + "\n")
size = sum(wheel.stat().st_size for wheel in wheels) / 1e9
print(f"{len(wheels)} wheels, {size:.2f} GB in {out}")
print(f"install with: pip install --no-index --no-deps --find-links {out} --require-hashes -r {out}/requirements.txt")
PYTHON
