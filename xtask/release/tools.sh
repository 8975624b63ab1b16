#!/usr/bin/env bash
# Builds the programs that publish.sh needs, crane, cosign and helm, at the versions of testenv/tools. Prints their folder, for PATH.
#
#   tools.sh FOLDER
#
# Needs Go. It runs nothing of what it compiles.
set -euo pipefail

mkdir -p "$1"
bin=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/../../testenv/tools"
for module in crane cosign helm; do
  GOBIN=$bin go -C "$module" install tool >&2
done
echo "$bin"
