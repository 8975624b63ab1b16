#!/usr/bin/env bash
# Publishes what `cargo xtask release` made: pushes it to a registry, signs it, and attests what it is made of and by whom.
#
#   publish.sh FOLDER [REGISTRY]    such as: publish.sh target/dist/0.1.0 registry.example.com/platform
#
# Without REGISTRY, it is the one that the chart in FOLDER names. Needs crane, cosign, git, helm and jq (tools.sh builds crane, cosign and
# helm), and a login to the registry, or REGISTRY_USER and REGISTRY_PASSWORD. Signs by the identity of the GitHub workflow that runs it, or
# with the key that COSIGN_KEY names, and then without Sigstore's services. Prints a table of what it published, in Markdown.
# docs/releasing.md has the commands that verify it.
set -euo pipefail

dist=$(cd "$1" && pwd)
version=${dist##*/}
registry=${2:-}
if [[ -z $registry ]]; then
  repository=$(helm show values "$dist/idtoken-operator-$version.tgz" --jsonpath '{.image.repository}')
  if [[ $repository != */* ]]; then
    echo "the chart names no registry (image.repository): name one after the folder" >&2
    exit 1
  fi
  registry=${repository%/*}
fi
if [[ -n ${REGISTRY_PASSWORD:-} ]]; then
  crane auth login "${registry%%/*}" --username "$REGISTRY_USER" --password-stdin <<<"$REGISTRY_PASSWORD" >&2
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

signer=(--yes)
if [[ -n ${COSIGN_KEY:-} ]]; then
  cosign signing-config create --out "$scratch/signing-config.json"
  cosign trusted-root create --out "$scratch/trusted-root.json"
  signer+=(--key "$COSIGN_KEY" --signing-config "$scratch/signing-config.json" --trusted-root "$scratch/trusted-root.json")
fi

# As https://slsa.dev/spec/v1.0/provenance has it.
if [[ -n ${GITHUB_WORKFLOW_REF:-} ]]; then
  repository=$GITHUB_SERVER_URL/$GITHUB_REPOSITORY
  workflow=${GITHUB_WORKFLOW_REF#"$GITHUB_REPOSITORY/"}
  jq -n --arg repository "$repository" --arg path "${workflow%@*}" --arg ref "$GITHUB_REF" --arg commit "$GITHUB_SHA" \
    --arg builder "$GITHUB_SERVER_URL/$GITHUB_WORKFLOW_REF" \
    --arg run "$repository/actions/runs/$GITHUB_RUN_ID/attempts/$GITHUB_RUN_ATTEMPT" '{
      buildDefinition: {
        buildType: "https://actions.github.io/buildtypes/workflow/v1",
        externalParameters: {workflow: {repository: $repository, path: $path, ref: $ref}},
        resolvedDependencies: [{uri: "git+\($repository)@\($ref)", digest: {gitCommit: $commit}}]},
      runDetails: {builder: {id: $builder}, metadata: {invocationId: $run}}}' >"$scratch/provenance.json"
else
  jq -n --arg commit "$(git rev-parse HEAD)" --arg version "$version" '{
      buildDefinition: {
        buildType: "https://idtoken.dev/builds/cargo-xtask-release/v1",
        externalParameters: {version: $version},
        resolvedDependencies: [{digest: {gitCommit: $commit}}]},
      runDetails: {builder: {id: "https://idtoken.dev/builders/by-hand"}}}' >"$scratch/provenance.json"
fi

# ARCHIVE REFERENCE: pushed as it is, so that the digest is the one that the build printed.
push() {
  local layout=$scratch/layout
  mkdir "$layout"
  tar -xf "$1" -C "$layout"
  crane push "$layout" "$2" >&2
  rm -r "$layout"
}

# REFERENCE: the bytes that a client downloads.
bytes() {
  local manifest total=0 child
  manifest=$(crane manifest "$1")
  for child in $(jq -r '.manifests[]?.digest' <<<"$manifest"); do
    total=$((total + $(bytes "${1%[:@]*}@$child")))
  done
  echo $((total + $(jq '[.config.size // 0, .layers[]?.size] | add' <<<"$manifest")))
}

row() {
  printf '| %s | %s | `%s` | %s |\n' "$@"
}

# REFERENCE WHAT: signs and attests, and prints the row. WHAT is what it has besides.
finish() {
  local digest
  digest=$(crane digest "$1")
  cosign sign "${signer[@]}" --recursive "${1%:*}@$digest" >&2
  cosign attest "${signer[@]}" --type slsaprovenance1 --predicate "$scratch/provenance.json" "${1%:*}@$digest" >&2
  row "$1" "$(bytes "$1")" "$digest" "signature, provenance$2"
}

row Artifact Bytes Digest 'Signed' | tr -d '`'
echo '|---|---|---|---|'
for name in idtoken-operator idtoken-emulator; do
  image=$registry/$name
  parts=()
  for archive in "$dist/$name-$version"-linux-*.oci.tar; do
    arch=${archive##*-linux-}
    arch=${arch%.oci.tar}
    push "$archive" "$image:$version-$arch"
    cosign attest "${signer[@]}" --type cyclonedx --predicate "$dist/$name-$version-linux-$arch.cdx.json" \
      "$image@$(crane digest "$image:$version-$arch")" >&2
    parts+=(--manifest "$image:$version-$arch")
  done
  crane index append "${parts[@]}" --tag "$image:$version" >&2
  finish "$image:$version" ", SBOM for each platform"
done
for kind in chart manifests; do
  folder=${kind%s}s
  push "$dist/idtoken-operator-$version-$kind.oci.tar" "$registry/$folder/idtoken-operator:$version"
  finish "$registry/$folder/idtoken-operator:$version" ''
done

cd "$dist"
cosign sign-blob "${signer[@]}" --bundle SHA256SUMS.sigstore.json SHA256SUMS >&2
cosign attest-blob "${signer[@]}" --type slsaprovenance1 --predicate "$scratch/provenance.json" \
  --bundle SHA256SUMS.provenance.sigstore.json SHA256SUMS >&2
while read -r sum file; do
  row "$file" "$(wc -c <"$file")" "sha256:$sum" "by SHA256SUMS"
done <SHA256SUMS
row SHA256SUMS "$(wc -c <SHA256SUMS)" "sha256:$(sha256sum SHA256SUMS | cut -d' ' -f1)" 'signature, provenance'
