#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Boots a VM and runs a script of this folder in it, inside.py or $SCRIPT, with all that it needs from
# the build's folder $B. MEMORY: of the VM, in MiB. PRELOAD: a library for the script's programs.
# COUNT: the build has COV=1; where to put what its programs count.
#
#   B=build [SCRIPT=soak.py] [MEMORY=4096] [PRELOAD=leak.so] [COUNT=DIR] \
#       tests/vm/suite.sh KERNEL SECONDS [ARGUMENTS OF THE SCRIPT]
set -eu
kernel=$1 seconds=$2
shift 2
here=$(dirname "$0")
script=${SCRIPT:-inside.py}
exec "$here/boot.py" --kernel "$kernel" --modules vhost --timeout "$seconds" \
	${COUNT:+--gcov "$B" --out "$COUNT" --env VSR_COVERAGE=1} \
	${MEMORY:+--memory "$MEMORY"} \
	${PRELOAD:+--add "$B/tests/vm/$PRELOAD:/build/$PRELOAD"} \
	--bin "$B/vsock-relayd:/build/vsock-relayd" --bin "$B/vsock-relayctl:/build/vsock-relayctl" \
	--bin "$B/tests/vm/fakeguest:/usr/bin/fakeguest" \
	--bin "$B/tests/vm/vsockdiag:/usr/bin/vsockdiag" \
	--add "$here/../lib:/tests/lib" --add "$here/$script:/tests/vm/$script" \
	--env VSR_BUILD=/build -- /usr/bin/python3 "/tests/vm/$script" "$@"
