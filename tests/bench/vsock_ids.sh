#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Many VM ids over vhost-vsock: boots a VM and runs vsock_ids.py in it.
#
#   tests/bench/vsock_ids.sh BUILD [ARGUMENTS OF vsock_ids.py]
set -eu
build=$1
shift
here=$(dirname "$0")
exec "$here/../vm/boot.py" --kernel 6.12 --modules vhost --memory 3072 --timeout 900 \
	--bin "$build/vsock-relayd:/build/vsock-relayd" \
	--bin "$build/tests/vm/fakeguest:/usr/bin/fakeguest" \
	--add "$here/vsock_ids.py:/tests/bench/vsock_ids.py" \
	--add "$here/subject.py:/tests/bench/subject.py" \
	--add "$here/../lib:/tests/lib" -- \
	/usr/bin/python3 /tests/bench/vsock_ids.py --build /build --dir /tmp "$@"
