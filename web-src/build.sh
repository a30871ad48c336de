#!/usr/bin/env bash
# Copy the packages of package-lock.json to her2batch/web/static/vendor, with their licences and a list of their
# versions. npm checks each package against the hash of the lock file; tests/web/test_vendored.py checks the files.
set -euo pipefail
cd "$(dirname "$0")"
npm ci --ignore-scripts --no-audit --no-fund
vendor=../her2batch/web/static/vendor
rm -rf "$vendor"
mkdir -p "$vendor"
cp node_modules/openseadragon/build/openseadragon/openseadragon.min.js "$vendor/openseadragon.js"
sed -i '/^\/\/# sourceMappingURL=/d' "$vendor/openseadragon.js"
cp node_modules/openseadragon/LICENSE.txt "$vendor/openseadragon.LICENSE.txt"
python3 - "$vendor" <<'PY'
import hashlib, json, pathlib, sys

vendor = pathlib.Path(sys.argv[1])
packages = json.loads(pathlib.Path("package-lock.json").read_text())["packages"]
listed = {
    "packages": {
        name.removeprefix("node_modules/"): {key: one[key] for key in ("version", "license", "integrity")}
        for name, one in packages.items() if name
    },
    "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(vendor.iterdir())},
}
(vendor / "vendored.json").write_text(json.dumps(listed, indent=2) + "\n")
PY
rm -rf node_modules
