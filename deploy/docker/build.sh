#!/bin/sh
# Builds the static leakmon, BPF programs inside, and lays out the image's files: `build.sh TREE`. Run in the source's root.
set -eu
tree=${1:?give the folder for the files of the image}
target=x86_64-unknown-linux-gnu

cargo xtask setup --build
cargo xtask build-ebpf
RUSTFLAGS='-C target-feature=+crt-static' cargo build --quiet --release --locked --package leakmon --target $target
install -D -m 0755 "${CARGO_TARGET_DIR:-target}/$target/release/leakmon" "$tree/usr/bin/leakmon"
install -D -m 0644 deploy/systemd/leakmon.toml "$tree/etc/leakmon/leakmon.toml"
# Certificates of public authorities, for pushing profiles over TLS.
if [ -f /etc/ssl/certs/ca-certificates.crt ]; then
    install -D -m 0644 /etc/ssl/certs/ca-certificates.crt "$tree/etc/ssl/certs/ca-certificates.crt"
fi
# Mount points.
mkdir -p "$tree/proc" "$tree/sys" "$tree/tmp"
