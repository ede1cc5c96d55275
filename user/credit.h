/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The credit of a granted vsock connection, and what it may cost. Packets without payload are shown
 * to no verdict and charged to no socket (user/unseen.h): whatever the rules for bytes are, a guest
 * can make the kernel keep as many of them as its credit allows, 115 bytes of memory for a byte of
 * credit. So credit is given by what can be paid: that much is drawn from the shared reserve for as
 * long as the connection has it. The first connections get plenty, each further one less; when
 * half of the reserve is drawn, the least, at the cost of the reservation.
 */
#ifndef VSR_CREDIT_H
#define VSR_CREDIT_H

#include "util.h"
#include "vsr_abi.h"

/* The verdict gives credit back with each packet, so more of it would only let more packets be
 * under way unseen. */
#define CREDIT_MOST (256 * KIB)
/* In user-space mode what is unread stays in the kernel, where nothing shows it. */
#define CREDIT_MOST_USER (64 * KIB)
/* With less the round trips cost: 4 KiB halve the speed (kernel-facts small_credit). */
#define CREDIT_LEAST (8 * KIB)

struct credit {
	uint64_t bytes;	  /* 0: none was given, or it was taken back */
	uint64_t drawn;	  /* of the shared reserve */
	uint64_t charged; /* what the reservation has to pay, as the reserve could not */
};

/* How much credit there can be now, at most `most`; draws on the reserve. */
struct credit credit_choose(struct vsr_pool *pool, uint64_t most);

/* Offers the credit to the peer. Returns 0 or what setsockopt() says. */
int credit_raise(int fd, uint64_t bytes);

/* Gives back what was drawn, and nothing else. */
void credit_give_back(struct credit *c, struct vsr_pool *pool);

/*
 * Takes the credit back from a peer that the socket is about to be closed on, and may still have
 * data for it in the kernel's send queue. A socket that the peer does not let go of lives on for 8 s
 * behind the close(), and would take in and keep all that its credit allows; without credit the
 * kernel resets it at the first packet. Returns true if there is no need: the peer has ended the
 * connection, and close() will free it at once.
 */
bool credit_end(int fd);

#endif
