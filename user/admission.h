/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Admission (SPEC 3: places, memory, debt): which connection is granted a place and memory, and
 * when. Pure core; a connection embeds an admission_ticket, so nothing here allocates per
 * connection.
 *
 * A ticket's way:
 *
 *   admission_arrive()                waits; it holds nothing
 *   admission_next()                  has a place and a reservation; the caller raises credit
 *   admission_resize()                when an offer was read, and as the report grows
 *   admission_release()               the report is decided: place and reservation are given
 *                                     back; then the caller answers, at most 1 s
 *   admission_close()                 the socket is closed; what the kernel still has queued for
 *                                     the guest becomes the VM's debt
 *
 * admission_close() also ends a ticket that waits or has a place (a peer that left, a stop).
 *
 * Arithmetic of the one budget B (M: the maximum, report limit + 1 MiB; B >= 2 M):
 *
 *   reserve        = B / 4     what BPF may draw on (vsr_pool). In user-space mode it is set
 *                              aside too, so that both modes decide alike
 *   debts          <= B / 4    more is possible but is not charged: then every VM with debt is
 *                              refused, so that it cannot get worse
 *   reservations + debts <= B - reserve, for each grant and each growth
 *
 * so B / 2 >= M is left for reservations in the worst case, and every report can be received. The
 * shares of "half of memory" and "a quarter" are shares of B - reserve, but at least M: VMs with
 * an accepted report always find at least half of it. Half of 50 places is 25, a quarter is 12;
 * at least 1.
 */
#ifndef VSR_ADMISSION_H
#define VSR_ADMISSION_H

#include "list.h"
#include "reason.h"
#include "vm.h"

#define ADMISSION_SERVED_PER_VM	      2
#define ADMISSION_CONNECTIONS_PER_VM  3 /* served and waiting together; one more is refused */
#define ADMISSION_PASS_OVER_USEC      USEC_PER_SEC
#define ADMISSION_MIN_RESERVATION     (1 * MIB)
#define ADMISSION_UNKNOWN_RESERVATION (2 * MIB)
#define ADMISSION_MARGIN	      (1 * MIB) /* of an offer, and of the maximum */
#define ADMISSION_VM_DEBT	      (1 * MIB) /* over this the VM waits */
#define ADMISSION_PROBE_USEC	      (10 * USEC_PER_MIN)
/* A VM's connections may take one part in so many of the event loop's time... */
#define ADMISSION_LOOP_SHARE 20
/* ... and are held back no longer than this for it: less than one waits for a place, so that it
 * alone refuses nobody. */
#define ADMISSION_BUSY_USEC (2 * USEC_PER_SEC)
/* VSOCK_CLOSE_TIMEOUT of the kernel, 8 s, and one more for its work queue. */
#define ADMISSION_KEPT_USEC (9 * USEC_PER_SEC)

struct admission_settings {
	uint32_t places;       /* connections with a place at a time: 50 */
	uint32_t waiting;      /* connections that wait in all: 256 */
	uint64_t wait;	       /* microseconds that one waits at most: 5 s */
	uint64_t budget;       /* bytes: 256 MiB */
	uint64_t report_limit; /* bytes of payload: 16 MiB */
};

extern const struct admission_settings admission_defaults;

enum admission_state {
	ADMISSION_NONE = 0, /* in no list; all zero is a valid ticket in this state */
	ADMISSION_WAITING,
	ADMISSION_SERVED, /* has a place and a reservation */
	ADMISSION_DONE,	  /* decided: holds only what the kernel has queued for the guest */
};

/* Embedded by the connection; must be all zero before its first use. Read only for the caller. */
struct admission_ticket {
	struct vm *vm;
	struct list by_vm;	/* in vm->waiters */
	struct list by_arrival; /* in the admission's waiters */
	uint64_t arrived;
	uint64_t epoch;	      /* backlog epoch at arrival */
	uint64_t unfit_since; /* when its turn came and it did not fit; USEC_INFINITY: not yet */
	uint64_t reservation; /* bytes */
	uint8_t state;	      /* enum admission_state */
	bool limited;	      /* counts against the half: no accepted report, offence, second */
	bool offender;	      /* counts against the quarter */
};

struct admission;

/* The table must outlive the admission. Returns 0; -EINVAL: no place, no one may wait, or a
 * budget below twice the maximum; -ENOMEM. */
int admission_new(struct vm_table *vms, const struct admission_settings *s, struct admission **ret);
/* No ticket may be in use any more. */
struct admission *admission_free(struct admission *a);
DEFINE_CLEANUP(struct admission, admission_free);

/* Other settings (reload): what is granted stays granted, nothing more is until it fits.
 * Returns 0; -EINVAL as above, and the old settings stay. */
int admission_set(struct admission *a, const struct admission_settings *s);

/* A connection of this VM was accepted, at zero credit. (The caller has checked for reserved
 * CIDs, and refuses a VM without a record as REASON_VM_TABLE_FULL.) Returns 0: it waits;
 * -EBUSY: refused, why is in *ret_reason (VM_CONNECTIONS, WAITING_FULL), and the ticket is
 * not in use. */
int admission_arrive(struct admission *a, struct admission_ticket *ticket, struct vm *vm,
		     uint64_t now, enum reason *ret_reason);

/* The next waiter that may be granted now, which takes its place and its reservation
 * (ticket->reservation); NULL: none. To be called until it says NULL, whenever something arrived
 * or ended, or admission_next_event() is due. */
struct admission_ticket *admission_next(struct admission *a, uint64_t now);

/* A waiter whose time is over: it is taken out (state ADMISSION_DONE, holding nothing) and
 * to be refused with *ret_reason, WAIT_TIMEOUT or DEBT, and then admission_close()d. NULL: none.
 * Call admission_next() first: who still fits is not refused. */
struct admission_ticket *admission_expired(struct admission *a, uint64_t now,
					   enum reason *ret_reason);

/* When to call admission_next(), _expired() and _debt_probe() again although nothing arrives or
 * ends; USEC_INFINITY: never. Valid after they all said NULL. */
uint64_t admission_next_event(const struct admission *a, uint64_t now);

/* Changes the reservation of a ticket with a place: to the offered length +
 * ADMISSION_MARGIN, or as it grows. Shrinking always works. Returns 0; -EAGAIN: not to be had
 * now (framed: OFFER_BUSY or OVER_BUDGET); -EFBIG: above the maximum. */
int admission_resize(struct admission *a, struct admission_ticket *ticket, uint64_t bytes);

/* The largest reservation, report limit + ADMISSION_MARGIN. */
uint64_t admission_maximum(const struct admission *a);

/* Bytes that BPF may draw in all (vsr_pool.limit). */
uint64_t admission_reserve(const struct admission *a);

/* What happened to a ticket with a place is decided; gives place and reservation back, but for
 * wmem, the bytes that the kernel has queued for the guest. reason REASON_NONE: a valid report of
 * `length` bytes came in, new or known; else why not, and length is not looked at. An offence
 * (reason_is_offence()) and OVER_BUDGET decide about the VM's next connection. */
void admission_release(struct admission *a, struct admission_ticket *ticket, enum reason reason,
		       uint64_t length, uint64_t wmem);

/* The event loop spent that much CPU time on a connection of the VM. While others are there, the VM is granted
 * nothing more until that is no more than its share. Without limit with grants unlimited. */
void admission_worked(struct vm *vm, uint64_t usec, uint64_t now);

/* The socket was closed with wmem bytes queued for the guest, which become the VM's debt. Ends
 * the ticket, whatever its state: a waiter leaves its queue, a place is given back (without
 * admission_release() nothing is learned about the VM), ADMISSION_NONE stays what it is. The VM
 * is then no longer pinned by this ticket, and ticket->vm is NULL. */
void admission_close(struct admission *a, struct admission_ticket *ticket, uint64_t wmem,
		     uint64_t now);

/* The same debt for a socket that had no ticket, as it was refused on arrival. */
void admission_debt_add(struct admission *a, struct vm *vm, uint64_t wmem, uint64_t now);

/* A socket was closed while its queue held `bytes` of packets that nobody had looked at (user/unseen.h),
 * and the guest did not let go of the connection: the kernel keeps them for ADMISSION_KEPT_USEC at
 * most. Until then they are the VM's debt as well, and nothing else ends it. */
void admission_kept(struct admission *a, struct vm *vm, uint64_t bytes, uint64_t now);

/* accept() said EAGAIN: every connection accepted from now on was requested after all that was
 * closed until now. Debt only ends by a connection that is known to be later (see
 * admission_drained()), and one that sat in the backlog is not. */
void admission_backlog_empty(struct admission *a);

/* Whether the caller should look at the WMEM of this ticket's socket, as it might end a debt. */
bool admission_wants_wmem(const struct admission_ticket *ticket);

/* The ticket's socket showed WMEM 0. The queue to a guest is first in, first out, so all that
 * was queued for this guest before the connection was requested is read: its debt from before
 * then has ended. Returns whether it did (then call admission_next()). */
bool admission_drained(struct admission *a, struct admission_ticket *ticket);

/* The CID is gone (connect says ENODEV), and the kernel's queue with it, or the guest has answered
 * a probe that was queued behind it: the VM's debt ends. */
void admission_vm_gone(struct admission *a, struct vm *vm);

/* The next VM with debt whose CID should be tried with connect (each every 10 min; saying so
 * counts as the try). ns: that of the VMs that connect reaches. Of another network namespace ENODEV
 * would say nothing, and we cannot go there any more: debt of its VMs, if no connection ends it, ends
 * here when the VM would be forgotten (VM_IDLE_USEC). NULL: none is due. */
struct vm *admission_debt_probe(struct admission *a, uint32_t ns, uint64_t now);

/* The waiter that arrived first, NULL: none. To refuse all at a stop: close each. */
struct admission_ticket *admission_first_waiter(const struct admission *a);

/* For metrics and tests. */
struct admission_figures {
	uint32_t places, places_used;
	uint32_t waiting;
	uint32_t limited_places, offender_places; /* used by those classes */
	uint64_t budget, reserve;		  /* bytes, as all below */
	uint64_t reserved;			  /* by reservations */
	uint64_t limited_reserved, offender_reserved;
	uint64_t debt;	       /* of all VMs together */
	uint64_t debt_charged; /* of it, against the budget */
	uint32_t debtors;      /* VMs with debt */
};
void admission_figures(const struct admission *a, struct admission_figures *ret);

/* The limits of the classes, which `limited` and `offender` tickets are held to. */
void admission_limits(const struct admission *a, uint32_t *ret_limited_places,
		      uint64_t *ret_limited_bytes, uint32_t *ret_offender_places,
		      uint64_t *ret_offender_bytes);

#endif
