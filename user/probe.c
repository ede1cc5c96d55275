/* SPDX-License-Identifier: Apache-2.0 */
#include "probe.h"

#include <linux/vm_sockets.h>
#include <sys/socket.h>

bool probe_cid_gone(uint32_t cid)
{
	struct sockaddr_vm sa = {
		.svm_family = AF_VSOCK,
		.svm_cid = cid,
		.svm_port = VMADDR_PORT_ANY - 1,
	};
	_cleanup_close_ int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return false;
	return connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 && errno == ENODEV;
}
