#!/usr/bin/env bash
# Fail where the exported modules differ from the notebooks, or a notebook is not clean.
# Works on a copy, so that a failing check leaves the tree as it was.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r "$root"/{nbs,bin_counter,settings.ini,setup.py} "$copy"
[ -f "$root/README.md" ] && cp "$root/README.md" "$copy"
find "$copy" -name __pycache__ -prune -exec rm -rf {} +
cd "$copy"
HOME="$copy" nbdev_export
HOME="$copy" nbdev_clean
bad=0
diff -ru -x __pycache__ "$root/bin_counter" bin_counter || { echo 'bin_counter/ differs from the notebooks: run nbdev_export and commit'; bad=1; }
diff -rq -x .ipynb_checkpoints -x .last_checked "$root/nbs" nbs || { echo 'a notebook is not clean: run nbdev_clean and commit'; bad=1; }
python "$root/tools/readme.py" --check || bad=1
python "$root/tools/outputs.py" check || bad=1
exit $bad
