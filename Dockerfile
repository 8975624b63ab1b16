# syntax=docker/dockerfile:1
#
# docker buildx build --platform linux/amd64,linux/arm64 --push --tag registry.example.com/idtoken-operator .
# docker buildx build --target idtoken-emulator --build-arg PACKAGE=idtoken-emulator --tag idtoken-emulator .
#
# The program is compiled on the builder's own processor for that of the image, so nothing is emulated. `cargo xtask image`
# makes the same image with no Docker, and that is the one that the tests open and run, and that is released. See docs/images.md.
#
# The two images of others, this file's syntax and Rust, are named by tags. The tag of Rust names the version of
# rust-toolchain.toml, which `cargo xtask release` compares; a digest says nothing about the version, and would also fix
# Debian's packages without their security fixes. Whoever needs the same bytes again names a digest:
# `--build-arg RUST_IMAGE=rust@sha256:…`. The images are made from scratch, so nothing of either is in them but the C library.

ARG RUST_IMAGE=rust:1.95.0-bookworm

FROM --platform=$BUILDPLATFORM ${RUST_IMAGE} AS build
ARG BUILDARCH
ARG TARGETARCH
ENV RUSTUP_TOOLCHAIN=1.95.0

# Rust's name of the target, its standard library and, for another processor, a linker and a compiler for aws-lc's C code.
RUN case "$TARGETARCH" in \
      amd64) target=x86_64-unknown-linux-gnu; packages="gcc-x86-64-linux-gnu libc6-dev-amd64-cross" ;; \
      arm64) target=aarch64-unknown-linux-gnu; packages="gcc-aarch64-linux-gnu libc6-dev-arm64-cross" ;; \
      *) echo "there is no image for $TARGETARCH" >&2; exit 1 ;; \
    esac; \
    echo "$target" >/target && rustup target add "$target" && \
    if [ "$TARGETARCH" != "$BUILDARCH" ]; then \
      apt-get update && apt-get install --yes --no-install-recommends $packages && rm -rf /var/lib/apt/lists/*; \
    fi
ENV CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=x86_64-linux-gnu-gcc \
    CC_x86_64_unknown_linux_gnu=x86_64-linux-gnu-gcc \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
    CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc

# Records in the program what it is made of, for scanners.
RUN cargo install --locked cargo-auditable@0.7.7

WORKDIR /src
COPY . .
ARG PACKAGE=idtoken-operator
# The caches keep the dependencies, fetched and compiled, from build to build.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,id=target-$TARGETARCH,sharing=locked \
    target=$(cat /target) && \
    RUSTFLAGS="-Ctarget-feature=+crt-static --remap-path-prefix=/usr/local/cargo=/cargo" \
      cargo auditable build --locked --release --package "$PACKAGE" --bins --target "$target" && \
    install -D -m 0755 "target/$target/release/$PACKAGE" "/image/$PACKAGE" && \
    cargo run --locked --package idtoken-image -- --package "$PACKAGE" --target "$target" /image

FROM scratch AS idtoken-emulator
COPY --from=build /image/etc /etc
COPY --from=build /image/licenses /licenses
COPY --from=build /image/idtoken-emulator /idtoken-emulator
USER 65532:65532
ENTRYPOINT ["/idtoken-emulator"]
ARG VERSION=0.1.0
ARG REVISION
ARG CREATED
ARG SOURCE
LABEL org.opencontainers.image.title="idtoken-emulator" \
      org.opencontainers.image.description="Google's token endpoints for tests; issues tokens that Google never signed" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED" \
      org.opencontainers.image.source="$SOURCE"

# The last stage is what is built where no target is named.
FROM scratch AS idtoken-operator
COPY --from=build /image/etc /etc
COPY --from=build /image/licenses /licenses
COPY --from=build /image/idtoken-operator /idtoken-operator
USER 65532:65532
ENTRYPOINT ["/idtoken-operator"]
ARG VERSION=0.1.0
ARG REVISION
ARG CREATED
ARG SOURCE
LABEL org.opencontainers.image.title="idtoken-operator" \
      org.opencontainers.image.description="Keeps Google-signed OIDC ID tokens in Kubernetes Secrets, always fresh" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED" \
      org.opencontainers.image.source="$SOURCE"
