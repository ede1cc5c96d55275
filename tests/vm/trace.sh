#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Boots a VM and runs tests/vm/trace.py in it, with all that it needs from the build's folder $B.
# COUNT: the build has COV=1; where to put what its programs count.
#
#   B=build [COUNT=DIR] tests/vm/trace.sh KERNEL SECONDS [ARGUMENTS OF trace.py]
set -eu
kernel=$1 seconds=$2
shift 2
here=$(dirname "$0")
exec "$here/boot.py" --kernel "$kernel" --modules vhost --timeout "$seconds" \
	${COUNT:+--gcov "$B" --out "$COUNT" --env VSR_COVERAGE=1} \
	--bin "$B/vsock-relayd:/build/vsock-relayd" \
	--bin "$B/vsock-relayctl:/build/vsock-relayctl" \
	--bin "$B/tests/vm/fakeguest:/usr/bin/fakeguest" \
	--bin "$B/tests/vm/vsockdiag:/usr/bin/vsockdiag" \
	--bin "$B/tests/lib/faults.so:/build/tests/lib/faults.so" \
	--add "$here/../lib:/tests/lib" --add "$here/trace.py:/tests/vm/trace.py" \
	--env VSR_BUILD=/build -- /usr/bin/python3 /tests/vm/trace.py "$@"
