#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What the same path costs in Go, with its usual libraries, beside the daemon and the floors: builds
# tests/bench/go_relay with Debian's packages, then runs the gRPC part of the benchmark with it.
#
#   tests/bench/go_relay.sh BUILD [OPTION of run.py...]
set -eu

build=$(realpath "$1")
shift
here=$(cd "$(dirname "$0")" && pwd)
include=$(cd "$here/../../include" && pwd)
"$here/../../scripts/deps" build test go

# Without modules: the libraries are Debian's, in /usr/share/gocode.
root=$build/go
export GO111MODULE=off GOFLAGS= GOPATH="$root:/usr/share/gocode" GOCACHE="$root/cache"
mkdir -p "$root/src/vsr"
cp "$here/go_relay/main.go" "$root/src/vsr/"
go build -o "$root/protoc-gen-go" google.golang.org/protobuf/cmd/protoc-gen-go
scanner=scanner/v4/index_report.proto
vm=virtualmachine/v1/report.proto
sensor=sensor/virtual_machine_index_report.proto
for proto in $scanner $vm $sensor; do # one package each
	protoc --plugin="$root/protoc-gen-go" -I "$include" --go_out="$root/src" \
		--go_opt="M$scanner=vsr/scanner,M$vm=vsr/virtualmachine,M$sensor=vsr/sensor" "$proto"
done
go build -o "$build/tests/bench/go_relay" vsr
exec "$here/run.py" --build "$build" --parts grpc "$@"
