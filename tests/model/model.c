/* SPDX-License-Identifier: Apache-2.0 */
#include "model.h"

#include <stddef.h>
#include <string.h>

/* A VM that is installed anew has another vm_id and the same CID: its last content. */
static uint8_t claim_of(unsigned int content)
{
	return content == CONTENTS;
}

/* ---- sends -------------------------------------------------------------------------------------- */

static unsigned int n_remembered(const struct model_vm *vm)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < vm->n; i++)
		n += vm->send[i].remembered;
	return n;
}

/* Drops what nobody can ever hear of again. */
static void tidy(struct model_vm *vm)
{
	uint8_t n = 0;

	for (unsigned int i = 0; i < vm->n; i++)
		if (vm->send[i].remembered || vm->send[i].net || vm->send[i].flight)
			vm->send[n++] = vm->send[i];
	memset(&vm->send[n], 0, (size_t)(SLOTS_MAX - n) * sizeof(vm->send[0]));
	vm->n = n;
}

/* The generation that was in custody is an older one from now on. */
static void grow_old(struct model_vm *vm)
{
	for (unsigned int i = 0; i < vm->n; i++)
		vm->send[i].current = 0;
	vm->acked = vm->nacked = 0;
}

static struct model_send *in_flight(struct model_vm *vm)
{
	for (unsigned int i = 0; i < vm->n; i++)
		if (vm->send[i].flight != FLIGHT_OVER)
			return &vm->send[i];
	return NULL;
}

/* ---- custody ------------------------------------------------------------------------------------ */

/* By anything but an ACK: the same report is new then. */
static void lose_custody(const struct model_config *c, struct model_vm *vm)
{
	vm->held = 0;
	if (c->rules != RULES_RECORD_STAYS)
		vm->record = 0;
	grow_old(vm);
}

static void end_by_ack(struct model_vm *vm, const char **ret_broken)
{
	if (!vm->acked)
		*ret_broken = "custody ended by an ACK that no send of its generation got";
	vm->held = 0;
	for (unsigned int i = 0; i < vm->n; i++)
		vm->send[i].current = 0;
	/* vm->acked now is the record's */
	vm->nacked = 0;
}

static void take_custody(const struct model_config *c, struct model_vm *vm, unsigned int content)
{
	grow_old(vm);
	if (c->rules == RULES_NEW_CONTENT_FORGETS)
		for (unsigned int i = 0; i < vm->n; i++)
			vm->send[i].remembered = 0;
	vm->held = vm->record = (uint8_t)content;
}

static bool report(const struct model_config *c, struct model_vm *vm, unsigned int content,
		   bool refreshed, const char **ret_broken)
{
	if (content == 0)
		return false;
	if (vm->record == content && (vm->held || !refreshed)) {
		/* "Nothing to do", says the answer. */
		if (vm->held != content && !vm->acked)
			*ret_broken = "called known what is neither in custody nor ACKed";
		return true;
	}
	take_custody(c, vm, content);
	return true;
}

/* ---- answers ------------------------------------------------------------------------------------ */

static struct model_send *settled_by(const struct model_config *c, struct model_vm *vm,
				     uint8_t claim, enum model_match *ret_match)
{
	struct model_send *found = NULL;

	*ret_match = MATCH_UNMATCHED;
	for (unsigned int i = 0; i < vm->n; i++) {
		struct model_send *s = &vm->send[i];

		if (!s->remembered)
			continue;
		if (!c->bare && s->claim != claim) {
			if (!found)
				*ret_match = MATCH_STALE;
			continue;
		}
		if (!found || c->rules == RULES_ACK_SETTLES_NEWEST)
			found = s;
		*ret_match = MATCH_SETTLED;
	}
	return found;
}

static bool answer(const struct model_config *c, struct model_vm *vm, unsigned int i,
		   const char **ret_broken, enum model_match *ret_match)
{
	struct model_send *s;
	uint8_t net, current;

	if (i >= vm->n || vm->send[i].net < NET_ACK)
		return false;
	for (unsigned int j = 0; j < i && !c->reorder; j++)
		if (vm->send[j].net >= NET_ACK)
			return false;
	net = vm->send[i].net;
	vm->send[i].net = NET_NOTHING;
	s = settled_by(c, vm, vm->send[i].claim, ret_match);
	current = s ? s->current : 0;
	if (s)
		s->remembered = 0;
	if (net == NET_ACK && vm->held && (current || c->rules == RULES_ACK_ENDS_ANY)) {
		end_by_ack(vm, ret_broken);
	} else if (net == NET_NACK_PERMANENT && vm->held && current) {
		if (!vm->nacked)
			*ret_broken = "custody ended by a NACK that no send of its generation got";
		lose_custody(c, vm);
	}
	tidy(vm);
	return true;
}

/* ---- the upstream ------------------------------------------------------------------------------- */

static bool taken(const struct model_config *c, struct model_vm *vm, unsigned int i, enum net reply)
{
	struct model_send *s = &vm->send[i];

	if (i >= vm->n || s->net != NET_CALL)
		return false;
	if ((reply == NET_NACK || reply == NET_NACK_PERMANENT) && !c->nacks)
		return false;
	for (unsigned int j = 0; j < i && !c->reorder; j++)
		if (vm->send[j].net == NET_CALL)
			return false;
	s->net = reply;
	if (s->flight == FLIGHT_OPEN)
		s->flight = FLIGHT_TAKEN;
	vm->acked |= s->current && reply == NET_ACK;
	vm->nacked |= s->current && reply == NET_NACK_PERMANENT;
	tidy(vm);
	return true;
}

/* A message that is lost, or a call that never arrives. */
static bool vanishes(struct model_vm *vm, unsigned int i, bool call)
{
	struct model_send *s = &vm->send[i];

	if (i >= vm->n || (call ? s->net != NET_CALL : s->net < NET_ACK))
		return false;
	s->net = NET_NOTHING;
	tidy(vm);
	return true;
}

static bool send(const struct model_config *c, struct model_vm *vm)
{
	if (!vm->held || in_flight(vm) || vm->n >= c->slots || n_remembered(vm) >= c->sends)
		return false;
	vm->send[vm->n++] = (struct model_send){
		.remembered = 1,
		.current = 1,
		.claim = claim_of(vm->held),
		.net = NET_CALL,
		.flight = FLIGHT_OPEN,
	};
	return true;
}

static bool result(const struct model_config *c, struct model_vm *vm, enum event_kind kind)
{
	struct model_send *s = in_flight(vm);
	bool current = s && s->current;

	if (!s || (kind == EVENT_RESULT_DELIVERED && s->flight != FLIGHT_TAKEN) ||
	    (kind >= EVENT_RESULT_NOT_DELIVERED && s->flight == FLIGHT_TAKEN))
		return false;
	s->flight = FLIGHT_OVER;
	if (kind >= EVENT_RESULT_NOT_DELIVERED)
		s->net = NET_NOTHING;
	if (kind >= EVENT_RESULT_NOT_DELIVERED ||
	    (kind == EVENT_RESULT_FAILED && c->rules == RULES_FAILURE_SETTLES))
		s->remembered = 0;
	if (kind == EVENT_RESULT_REJECTED && current)
		lose_custody(c, vm);
	tidy(vm);
	return true;
}

/* The oldest send is forgotten. An answer to it, or to an older one, would be too late. */
static bool forget(const struct model_config *c, struct model_vm *vm)
{
	for (unsigned int i = 0; i < vm->n; i++) {
		struct model_send *s = &vm->send[i];

		if (s->flight != FLIGHT_OVER || (s->net != NET_NOTHING && !c->late))
			return false;
		if (!s->remembered)
			continue;
		s->remembered = 0;
		tidy(vm);
		return true;
	}
	return false;
}

static bool restart(const struct model_config *c, struct model_vm *vm, bool keeps)
{
	for (unsigned int i = 0; i < vm->n; i++) {
		vm->send[i].remembered = 0;
		vm->send[i].flight = FLIGHT_OVER;
		if (!c->late)
			vm->send[i].net = NET_NOTHING;
	}
	if (!keeps)
		vm->held = 0;
	vm->record = vm->held;
	if (!vm->held)
		grow_old(vm);
	tidy(vm);
	return true;
}

/* ---- all events --------------------------------------------------------------------------------- */

static bool dispatch(const struct model_config *c, struct model_vm *vm, struct event e,
		     const char **ret_broken, enum model_match *ret_match)
{
	switch (e.kind) {
	case EVENT_REPORT:
		return report(c, vm, e.arg, false, ret_broken);
	case EVENT_REPORT_REFRESHED:
		return report(c, vm, e.arg, true, ret_broken);
	case EVENT_SEND:
		return send(c, vm);
	case EVENT_TAKEN_ACK:
		return taken(c, vm, e.arg, NET_ACK);
	case EVENT_TAKEN_NACK:
		return taken(c, vm, e.arg, NET_NACK);
	case EVENT_TAKEN_NACK_PERMANENT:
		return taken(c, vm, e.arg, NET_NACK_PERMANENT);
	case EVENT_TAKEN_SILENTLY:
		return taken(c, vm, e.arg, NET_NOTHING);
	case EVENT_LOST:
		return vanishes(vm, e.arg, true);
	case EVENT_RESULT_DELIVERED:
	case EVENT_RESULT_FAILED:
	case EVENT_RESULT_NOT_DELIVERED:
	case EVENT_RESULT_REJECTED:
		return result(c, vm, e.kind);
	case EVENT_ANSWER:
		return answer(c, vm, e.arg, ret_broken, ret_match);
	case EVENT_ANSWER_LOST:
		return vanishes(vm, e.arg, false);
	case EVENT_EVICTED:
		if (!vm->held)
			return false;
		lose_custody(c, vm);
		return true;
	case EVENT_FORGOTTEN:
		return forget(c, vm);
	case EVENT_RESTART_KEEPS:
		return restart(c, vm, true);
	case EVENT_RESTART_LOSES:
		return restart(c, vm, false);
	case EVENT_KINDS:
		break;
	}
	return false;
}

bool model_step(const struct model_config *c, struct model_vm *vm, struct event e,
		const char **ret_broken, enum model_match *ret_match)
{
	*ret_broken = NULL;
	*ret_match = MATCH_NONE;
	if (!dispatch(c, vm, e, ret_broken, ret_match))
		return false;
	if (*ret_broken)
		return true;
	if (vm->held && vm->record != vm->held)
		*ret_broken = "what is in custody is not of record";
	else if (!vm->held && vm->record && !vm->acked)
		*ret_broken = "of record is what is neither in custody nor ACKed";
	else if (n_remembered(vm) > c->sends)
		*ret_broken = "more sends are remembered than may be";
	return true;
}

unsigned int model_event_args(const struct model_vm *vm, enum event_kind kind)
{
	switch (kind) {
	case EVENT_REPORT:
	case EVENT_REPORT_REFRESHED:
		return CONTENTS;
	case EVENT_TAKEN_ACK:
	case EVENT_TAKEN_NACK:
	case EVENT_TAKEN_NACK_PERMANENT:
	case EVENT_TAKEN_SILENTLY:
	case EVENT_LOST:
	case EVENT_ANSWER:
	case EVENT_ANSWER_LOST:
		return vm->n ? vm->n - 1U : 0;
	default:
		return 0;
	}
}

const char *model_event_name(enum event_kind kind)
{
	static const char *const names[EVENT_KINDS] = {
		[EVENT_REPORT] = "report of content",
		[EVENT_REPORT_REFRESHED] = "report, a refresh if it is known, of content",
		[EVENT_SEND] = "send",
		[EVENT_TAKEN_ACK] = "upstream takes, and ACKs, send",
		[EVENT_TAKEN_NACK] = "upstream NACKs for now send",
		[EVENT_TAKEN_NACK_PERMANENT] = "upstream NACKs for good send",
		[EVENT_TAKEN_SILENTLY] = "upstream takes without an answer send",
		[EVENT_LOST] = "the upstream never gets send",
		[EVENT_RESULT_DELIVERED] = "the call succeeds",
		[EVENT_RESULT_FAILED] = "the call fails",
		[EVENT_RESULT_NOT_DELIVERED] = "the call fails, nothing was delivered",
		[EVENT_RESULT_REJECTED] = "the call is rejected for the last time",
		[EVENT_ANSWER] = "the answer arrives to send",
		[EVENT_ANSWER_LOST] = "the answer is lost to send",
		[EVENT_EVICTED] = "content evicted",
		[EVENT_FORGOTTEN] = "oldest send forgotten",
		[EVENT_RESTART_KEEPS] = "restart with a state directory",
		[EVENT_RESTART_LOSES] = "restart without one",
	};

	return names[kind];
}

bool model_can_deliver(const struct model_config *c, struct model_vm vm)
{
	const char *broken;
	enum model_match match;
	struct model_vm was;

	/* What is to come comes, oldest first; a result for each call; a send; and when too many are
	 * unsettled, 10 minutes. */
	for (int round = 0; vm.held && round < 100; round++) {
		struct event e = { EVENT_RESULT_FAILED, 0 };
		bool moved = false;

		for (e.arg = 0; !moved && e.arg < vm.n; e.arg++) {
			e.kind = EVENT_ANSWER;
			was = vm;
			moved = model_step(c, &vm, e, &broken, &match) &&
				memcmp(&was, &vm, sizeof(vm));
			if (moved)
				break;
			e.kind = EVENT_TAKEN_ACK;
			moved = model_step(c, &vm, e, &broken, &match);
		}
		e.arg = 0;
		for (e.kind = EVENT_RESULT_DELIVERED; !moved && e.kind <= EVENT_RESULT_FAILED;
		     e.kind++)
			moved = model_step(c, &vm, e, &broken, &match);
		e.kind = EVENT_SEND;
		moved = moved || model_step(c, &vm, e, &broken, &match);
		e.kind = EVENT_FORGOTTEN;
		moved = moved || model_step(c, &vm, e, &broken, &match);
		if (!moved)
			return false;
	}
	return !vm.held;
}
