#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs the daemon in the foreground with a hybrid socket for one VM and the file upstream, all in
# BUILD/run: needs neither root nor a VM. Its settings are written there once, to be played with.
#
#   scripts/run.sh [BUILD]
set -eu
build=$(cd "${1:-build}" && pwd)
dir=$build/run
mkdir -p "$dir/reports" "$dir/lock"

if [ ! -e "$dir/vsock-relay.yaml" ]; then
	cat >"$dir/vsock-relay.yaml" <<END
# Settings of \`make run\`. All keys: build/vsock-relayd --help

# The VM's own socket is vm-42; the relay listens on vm-42_818 beside it, as Firecracker and
# Cloud Hypervisor expect. Whoever connects there is the VM with CID 42.
hybrid:
  sockets:
    - path: $dir/vm-42
      cid: 42
  allowed_uids: any

# No AF_VSOCK and no BPF here: this machine may have neither.
listen:
  vsock: false
bpf: off

# The newest report of each VM, as <namespace>-<cid>.pb.
upstream:
  kind: file
  file:
    directory: $dir/reports

metrics:
  listen: 127.0.0.1:9818
admin_socket: $dir/admin.sock
run_directory: $dir/lock
END
fi

cat <<END
Send this machine's package list, from another terminal:
    $build/vsock-agent --once --cid 42 --unix $dir/vm-42_818
Look at what was stored, and at the counters:
    ls -l $dir/reports
    curl -s http://127.0.0.1:9818/metrics
Settings: $dir/vsock-relay.yaml

END
exec "$build/vsock-relayd" --config "$dir/vsock-relay.yaml"
