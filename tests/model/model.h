/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rules of SPEC 2, 5 and 7 about custody, generations, the digest of record, sends and ACKs,
 * as small as they can be said, and a world that does its worst to them. Written from the contract,
 * without a line of user/: what explore.c finds out about these rules is true of user/ as far as its
 * replay shows that both take the same decisions.
 *
 * Time is left out: what may happen after a while may happen at once. Generations are left out but
 * for the one difference that any rule looks at: of what is in custody now, or older.
 */
#ifndef VSR_MODEL_H
#define VSR_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#define CONTENTS  3
#define SLOTS_MAX 12

/* What of a send is on its way between the relay and the upstream. */
enum net {
	NET_NOTHING, /* lost, or answered and the answer has arrived or was lost */
	NET_CALL,    /* the upstream may still take it, whatever became of the call */
	NET_ACK,     /* answered: the message is on its way */
	NET_NACK,    /* for now */
	NET_NACK_PERMANENT,
};

enum flight {
	FLIGHT_OVER,
	FLIGHT_OPEN,  /* the call has no result */
	FLIGHT_TAKEN, /* nor has it yet, but the upstream has taken the content */
};

struct model_send {
	uint8_t remembered; /* nothing has settled it */
	uint8_t current;    /* of the generation in custody, else of an older one */
	uint8_t claim;	    /* which vm_id the content bears */
	uint8_t net, flight;
};

struct model_vm {
	uint8_t held;	/* content in custody, 1 to CONTENTS; 0: none */
	uint8_t record; /* content whose digest is of record; 0: none */
	/* What only the world knows: what it has said about the generation in custody, or, if there
	 * is none, the one that the record is of. */
	uint8_t acked, nacked;
	uint8_t n;
	struct model_send send[SLOTS_MAX]; /* oldest first */
};

/* Rules that are known to be wrong, to see that the model finds out. */
enum rules {
	RULES_SPEC,
	RULES_ACK_ENDS_ANY,	   /* the reference's: an ACK ends whatever is in custody */
	RULES_ACK_SETTLES_NEWEST,  /* instead of the oldest */
	RULES_NEW_CONTENT_FORGETS, /* the sends of what it supersedes */
	RULES_FAILURE_SETTLES,	   /* a call that failed is not remembered */
	RULES_RECORD_STAYS,	   /* however custody ends */
	RULES_MAX,
};

struct model_config {
	enum rules rules;
	unsigned int slots; /* sends that are remembered or on their way, a VM; at most SLOTS_MAX */
	unsigned int sends; /* that may be unsettled, a VM (8 in the contract) */
	bool bare;	    /* ACKs name the CID alone */
	bool nacks;	    /* the upstream says NACK too */
	/* What the contract excludes: */
	bool reorder; /* calls of one VM may be taken in another order than they were made */
	bool late;    /* answers after more than 10 min, or from before a restart */
};

enum event_kind {
	EVENT_REPORT,		/* content; suppressed if it is of record, ACKed, and not stale */
	EVENT_REPORT_REFRESHED, /* content; a repeat of what was ACKed is a new generation */
	EVENT_SEND,		/* for the first time, or a retry */
	EVENT_TAKEN_ACK,	/* the upstream takes send i, and says so */
	EVENT_TAKEN_NACK,
	EVENT_TAKEN_NACK_PERMANENT,
	EVENT_TAKEN_SILENTLY, /* or its answer is lost with the stream */
	EVENT_LOST,	      /* send i never reaches it */
	EVENT_RESULT_DELIVERED,
	EVENT_RESULT_FAILED,	    /* it may have been delivered */
	EVENT_RESULT_NOT_DELIVERED, /* certainly not */
	EVENT_RESULT_REJECTED,	    /* for the last time: the content is dropped */
	EVENT_ANSWER,		    /* the message about send i arrives */
	EVENT_ANSWER_LOST,
	EVENT_EVICTED,	 /* from the cache, without a state directory; or too old */
	EVENT_FORGOTTEN, /* the oldest send is 10 min old */
	EVENT_KINDS_OF_VM,
	/* of all VMs */
	EVENT_RESTART_KEEPS = EVENT_KINDS_OF_VM, /* with a state directory */
	EVENT_RESTART_LOSES,
	EVENT_KINDS,
};

struct event {
	enum event_kind kind;
	unsigned int arg; /* content, or index of a send */
};

/* How an answer was matched (enum tracker_match, but for permanent). */
enum model_match { MATCH_NONE, MATCH_UNMATCHED, MATCH_STALE, MATCH_SETTLED };

/*
 * Does to the VM what the event says, by the rules. Returns false if it cannot happen now; the VM
 * is then as it was. *ret_broken: NULL, or the invariant that does not hold. *ret_match: of an
 * answer.
 */
bool model_step(const struct model_config *c, struct model_vm *vm, struct event e,
		const char **ret_broken, enum model_match *ret_match);

/* The highest arg that the kind can have now, and its name. */
unsigned int model_event_args(const struct model_vm *vm, enum event_kind kind);
const char *model_event_name(enum event_kind kind);

/* From here on all goes well. Returns whether what is in custody is ACKed in the end. */
bool model_can_deliver(const struct model_config *c, struct model_vm vm);

#endif
