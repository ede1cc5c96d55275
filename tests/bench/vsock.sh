#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The bench over AF_VSOCK: boots a VM and runs matrix.py --vsock in it. Figures are to be compared
# with each other, not with those of the machine outside.
#
#   tests/bench/vsock.sh BUILD [ARGUMENTS OF matrix.py]
set -eu
build=$1
shift
here=$(dirname "$0")
exec "$here/../vm/boot.py" --kernel 6.12 --modules loopback --memory 3072 --timeout 1500 \
	--bin "$build/vsock-relayd:/build/vsock-relayd" \
	--bin "$build/tests/bench/load:/build/tests/bench/load" \
	--bin "$build/tests/bench/floor:/build/tests/bench/floor" \
	--add "$here/matrix.py:/tests/bench/matrix.py" \
	--add "$here/subject.py:/tests/bench/subject.py" \
	--add "$here/../lib/relay.py:/tests/lib/relay.py" -- \
	/usr/bin/python3 /tests/bench/matrix.py --build /build --dir /tmp --vsock --seconds 3 "$@"
