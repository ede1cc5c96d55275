#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The bench over AF_VSOCK: boots a VM and runs matrix.py --vsock in it. Figures are to be compared
# with each other, not with those of the machine outside. SCRIPT: another one of this folder instead
# (vsock_ids.py: many VM ids).
#
#   [SCRIPT=vsock_ids.py] tests/bench/vsock.sh BUILD [ARGUMENTS OF THE SCRIPT]
set -eu
build=$1
shift
here=$(dirname "$0")
script=${SCRIPT:-matrix.py}
[ "$script" != matrix.py ] || set -- --vsock --seconds 3 "$@"
exec "$here/../vm/boot.py" --kernel 6.12 --modules vhost --memory 3072 --timeout 1500 \
	--bin "$build/vsock-relayd:/build/vsock-relayd" \
	--bin "$build/tests/bench/load:/build/tests/bench/load" \
	--bin "$build/tests/bench/floor:/build/tests/bench/floor" \
	--bin "$build/tests/vm/fakeguest:/usr/bin/fakeguest" \
	--add "$here/$script:/tests/bench/$script" \
	--add "$here/subject.py:/tests/bench/subject.py" \
	--add "$here/../lib:/tests/lib" -- \
	/usr/bin/python3 "/tests/bench/$script" --build /build --dir /tmp "$@"
