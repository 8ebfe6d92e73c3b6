/*
 * The fanotify dialect (reference kernel-transports 2.5, 2.7).
 *
 * An answer is matched by the number of the event's descriptor, first match in
 * the group's list; so a number must not come into use again before its answer
 * is written: answer, clear the record, close, in this order.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "fanotify_internal.h"

/* A request's `unique`: of one that a predecessor left, is its number safe until it is answered? */

/* Whose drain this thread is in: the ring is the loop's own. */
static _Thread_local struct nf_fanotify *draining;

static void answer(struct nf_transport *t, struct nf_request *r, int err)
{
	struct fanotify_response response = { .fd = r->fd, .response = nf_fanotify_word(err) };
	int fd;

	if (draining == (struct nf_fanotify *)t && nf_fanotify_answer_by_ring(draining, r, err))
		return;
	nf_fanotify_write(atomic_load(&t->fd), response);
	fd = nf_fanotify_settled(r);
	if (fd >= 0)
		close(fd);
}

static enum nf_more drain_batch(struct nf_fanotify *f, uint32_t *n)
{
	uint32_t first, room;
	ssize_t got;

	first = nf_fanotify_free_run(f, &room);
	*n = 1;
	if (!room)
		return NF_NO_SLOT;
	got = read(atomic_load(&f->t.fd), nf_fanotify_record(&f->t, first),
		   (size_t)room * NF_FANOTIFY_EVENT);
	return nf_fanotify_took(f, first, room, got < 0 ? -errno : (int)got, n);
}

static bool reads_by_ring(const struct nf_fanotify *f)
{
	return f->waiter && !f->read.refused;
}

static enum nf_more drain(struct nf_transport *t, unsigned int budget)
{
	struct nf_fanotify *f = (struct nf_fanotify *)t;
	enum nf_more how = NF_MORE;
	uint32_t n;

	draining = f->waiter ? f : NULL;
	if (reads_by_ring(f))
		how = nf_fanotify_drain_ring(f);
	else
		for (; budget && how == NF_MORE; budget -= n < budget ? n : budget) {
			how = drain_batch(f, &n);
			if (f->under_way)
				nf_waiter_wait(f->waiter, 0);
		}
	draining = NULL;
	return how;
}

static void arm(struct nf_transport *t, struct nf_waiter *w)
{
	struct nf_fanotify *f = (struct nf_fanotify *)t;

	f->waiter = nf_waiter_uses_uring(w) ? w : NULL;
	if (reads_by_ring(f))
		nf_fanotify_arm_ring(f);
	else
		nf_transport_arm(t, w);
}

/* An answer that the ring did not give is on record still: it is a successor's. */
static void rest(struct nf_transport *t)
{
	struct nf_fanotify *f = (struct nf_fanotify *)t;

	f->waiter = NULL;
	f->under_way = 0;
	nf_fanotify_take_late(f);
}

int nf_fanotify_attach(struct nf_transport *t, int group)
{
	struct rlimit files;
	uint32_t most = t->slots - t->slots / 8;
	int none = -1;

	/* each waiting event is a descriptor, and half of them are for the rest of the process */
	if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur / 2 < most)
		most = (uint32_t)(files.rlim_cur / 2);
	atomic_store(&t->most, most);
	return atomic_compare_exchange_strong(&t->fd, &none, group) ? 0 : -EBUSY;
}

/* -- take-over ----------------------------------------------------------------------------------- */

/* Keep a number from being given to a new event as long as its old answer is owed. */
static bool occupy_number(int number)
{
	int any, got;

	if (number < 0 || fcntl(number, F_GETFD) >= 0)
		return false;
	any = eventfd(0, EFD_CLOEXEC);
	if (any < 0 || any == number)
		return any == number;
	got = dup3(any, number, O_CLOEXEC);
	close(any);
	return got == number;
}

/* Python's mmap has a descriptor of the journal of its own, for as long as the core has the memory:
 * a number that cannot come free either. */
static bool is_memory(int number)
{
	return fcntl(number, F_GET_SEALS) >= 0;
}

static int occupy(struct nf_transport *t)
{
	struct nf_fanotify *f = (struct nf_fanotify *)t;
	uint32_t slot;

	f->answers = calloc(t->slots, sizeof(*f->answers));
	if (!f->answers)
		return -ENOMEM;

	/* a page that is not in memory when the kernel copies an event there, in a process that
	 * is being killed, is an event lost: EFAULT denies its reader */
	mlock(t->area.records, (size_t)t->slots * NF_FANOTIFY_EVENT);
	*t->area.used = t->slots;
	for (slot = 0; slot < t->slots; slot++) {
		struct nf_request *r;

		if (!nf_fanotify_record(t, slot)->event_len)
			continue;
		r = nf_request_take(t, slot);
		r->fd = nf_fanotify_record(t, slot)->fd;
		r->owns_fd = occupy_number(r->fd);
		r->unique = r->owns_fd || is_memory(r->fd);
		atomic_store(&r->t_ns, nf_now_ns());
	}
	return 0;
}

static int settle(struct nf_transport *t, bool all_served)
{
	uint32_t slot;
	int n = 0;

	for (slot = 0; slot < t->slots; slot++) {
		struct nf_request *r = &t->requests[slot];
		struct nf_object *o;

		if (!atomic_load(&r->used))
			continue;
		n++;
		r->object = t->area.meta[slot].object;
		/*
		 * A number that something else of this process has may be closed, and given to a
		 * new event, while the old answer is owed: the answer to the new one would then
		 * release the old reader.  So that one is answered now.
		 */
		if (!r->unique || !nf_fanotify_range(nf_fanotify_record(t, slot), &r->off, &r->len)) {
			nf_request_answer(r, EIO);
			continue;
		}
		if (!r->object && all_served) {
			/* where it is present in all of them, it is in its own */
			nf_request_admit_everywhere(r);
			continue;
		}
		o = r->object ? nf_object_by_id(&t->core->table, r->object) : NULL;
		if (!o) {
			nf_request_answer(r, EIO);
			continue;
		}
		nf_request_admit(o, r, 0);
		nf_object_put(o);
	}
	return n;
}

static void destroy(struct nf_transport *t)
{
	free(((struct nf_fanotify *)t)->answers);
}

const struct nf_transport_ops nf_fanotify = {
	.name = "fanotify",
	.kind = NF_AREA_FANOTIFY,
	.record_size = NF_FANOTIFY_EVENT,
	.size = sizeof(struct nf_fanotify),
	.occupy = occupy,
	.settle = settle,
	.arm = arm,
	.drain = drain,
	.answer = answer,
	.withdraw = nf_fanotify_withdraw,
	.rest = rest,
	.destroy = destroy,
};
