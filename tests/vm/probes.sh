#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Boots a VM that has bpftrace, and runs tests/vm/probes.py in it.
#
#   B=build tests/vm/probes.sh KERNEL SECONDS
set -eu
kernel=$1 seconds=$2
shift 2
here=$(dirname "$0")
exec "$here/boot.py" --kernel "$kernel" --modules vhost --memory 3072 --timeout "$seconds" \
	--bin "$B/vsock-relayd:/usr/sbin/vsock-relayd" \
	--bin "$B/tests/vm/fakeguest:/usr/bin/fakeguest" \
	--bin /usr/bin/bpftrace \
	--add "$here/../lib:/tests/lib" --add "$here/probes.py:/tests/vm/probes.py" \
	--add "$here/../../docs/tracing.md:/docs/tracing.md" \
	-- /usr/bin/python3 /tests/vm/probes.py "$@"
