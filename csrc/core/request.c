#include "request.h"

#include <string.h>
#include <time.h>
#include <unistd.h>

#include "transport.h"

uint64_t nf_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_BOOTTIME, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

void nf_requests_wake_loop(struct nf_requests *rs)
{
	uint64_t one = 1;
	ssize_t n = write(rs->wake_fd, &one, sizeof(one));

	(void)n;	/* full means that it is awake already */
}

/* -- records ---------------------------------------------------------------------------------- */

struct nf_request *nf_request_take(struct nf_transport *t, uint32_t slot)
{
	struct nf_request *r = &t->requests[slot];

	r->off = 0;
	r->len = 0;
	r->next = NULL;
	r->via = t;
	r->unique = 0;
	r->slot = slot;
	r->object = 0;
	r->fd = -1;
	r->owns_fd = false;
	r->unattributed = false;
	atomic_store(&r->t_ns, 0);
	atomic_store(&r->used, true);
	atomic_fetch_add(&t->in_use, 1);
	return r;
}

void nf_request_release(struct nf_request *r)
{
	struct nf_transport *t = r->via;

	atomic_store(&r->t_ns, 0);
	atomic_store(&r->used, false);
	atomic_fetch_sub(&t->in_use, 1);
	if (atomic_exchange(&t->starved, false))
		nf_requests_wake_loop(t->core);
}

void nf_request_answer(struct nf_request *r, int err)
{
	if (err)
		atomic_fetch_add(&r->via->core->denied, 1);
	r->via->ops->answer(r->via, r, err);
}

/* -- who waits --------------------------------------------------------------------------------- */

/* Take from the pending list what `take` wants; returns the list of these. */
static struct nf_request *take_pending(struct nf_object *o,
				       bool (*take)(struct nf_object *, struct nf_request *, const void *),
				       const void *arg)
{
	struct nf_request *taken = NULL, *first = NULL, *last = NULL, *r, *next;
	uint32_t n = 0;

	pthread_mutex_lock(&o->lock);
	for (r = atomic_load(&o->pending); r; r = next) {
		next = r->next;
		if (take(o, r, arg)) {
			r->next = taken;
			taken = r;
			n++;
		} else {
			if (last)
				last->next = r;
			else
				first = r;
			last = r;
		}
	}
	if (last)
		last->next = NULL;
	atomic_store(&o->pending, first);
	atomic_fetch_sub(&o->npending, n);
	pthread_mutex_unlock(&o->lock);
	return taken;
}

static void count_wait(struct nf_requests *rs, uint64_t since)
{
	uint64_t now = nf_now_ns(), waited = now > since ? now - since : 0;
	uint64_t quarters = waited / 250000;	/* of a millisecond */
	unsigned int class = quarters ? 64 - (unsigned int)__builtin_clzll(quarters) : 0;

	if (class >= NF_WAIT_CLASSES)
		class = NF_WAIT_CLASSES - 1;
	atomic_fetch_add_explicit(&rs->waits[class], 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&rs->waits_ns, waited, memory_order_relaxed);
}

/* One that was in a list. */
static void answer_waiter(struct nf_requests *rs, struct nf_request *r, int err)
{
	uint64_t since = atomic_load(&r->t_ns);

	atomic_fetch_sub(&rs->pending, 1);
	if (since)
		count_wait(rs, since);
	nf_request_answer(r, err);
}

/* Answers what take_pending returned, oldest first.  Returns how many. */
static int answer_all(struct nf_requests *rs, struct nf_request *list, int err)
{
	struct nf_request *next;
	int n = 0;

	for (; list; list = next, n++) {
		next = list->next;
		answer_waiter(rs, list, err);
	}
	return n;
}

static bool is_satisfied(struct nf_object *o, struct nf_request *r, const void *arg)
{
	(void)arg;
	return nf_object_present(o, r->off, r->len);
}

static bool is_this(struct nf_object *o, struct nf_request *r, const void *arg)
{
	(void)o;
	return r == arg;
}

/*
 * Too many wait: an image whose backend hangs, or whose readers are killed (their requests stay),
 * must not take the records and descriptors of the others.  Deny who waits longest in the
 * object for which most wait.
 */
static void make_room(struct nf_requests *rs)
{
	struct nf_object *o = nf_object_busiest(&rs->table);
	struct nf_request *r, *oldest = NULL;

	if (!o)
		return;
	pthread_mutex_lock(&o->lock);
	for (r = atomic_load(&o->pending); r; r = r->next)
		oldest = r;
	pthread_mutex_unlock(&o->lock);
	if (oldest)	/* it may have been answered meanwhile: then it is not in the list */
		answer_all(rs, take_pending(o, is_this, oldest), EIO);
	nf_object_put(o);
}

enum admitted { WAITS, PRESENT, OUTSIDE, GONE };

/*
 * Python is told, unless it was told of all of it before and works on that.  It ends each with a
 * fill or with nf_fail; what it does not end, nf_expire does.
 */
static void tell(struct nf_object *o, struct nf_requests *rs, struct nf_event *ev)
{
	ev->type = NF_EV_MISS;
	if (nf_queue_push(&rs->queue, ev))
		return;
	pthread_mutex_lock(&o->lock);
	nf_object_untell(o, ev->off, ev->len);
	pthread_mutex_unlock(&o->lock);
}

/* Let it wait for the object's bytes, unless they are there; Python learns of a miss. */
static enum admitted admit(struct nf_object *o, struct nf_request *r, int pid)
{
	struct nf_requests *rs = r->via->core;
	struct nf_event ev = { .object = o->id, .pid = pid, .fd = -1 };
	uint64_t end = r->off + r->len;
	struct nf_trace_entry entry;
	bool crossed, present, gone, is_new = false;

	if (r->off >= o->size || !r->len)
		return OUTSIDE;
	if (end > o->size || end < r->off)
		end = o->size;
	ev.off = r->off & ~(uint64_t)(NF_PAGE - 1);
	ev.len = end - ev.off;
	entry = (struct nf_trace_entry){ .off = r->off, .len = (uint32_t)r->len, .object = o->id,
					 .pid = pid };

	pthread_mutex_lock(&o->lock);
	crossed = nf_object_touch(o, ev.off, ev.len);
	gone = o->gone;
	present = !gone && nf_object_present(o, r->off, r->len);
	if (!present && !gone) {	/* from here on it may be answered by any thread */
		r->next = atomic_load(&o->pending);
		atomic_fetch_add(&rs->pending, 1);
		atomic_fetch_add(&o->npending, 1);
		atomic_store(&o->pending, r);
		is_new = nf_object_tell(o, ev.off, ev.len);
	}
	pthread_mutex_unlock(&o->lock);

	if (atomic_load_explicit(&rs->trace.cap, memory_order_relaxed)) {
		entry.t_ns = nf_now_ns();
		entry.hit = present;
		nf_trace_add(&rs->trace, &entry);
	}
	if (crossed) {
		ev.type = NF_EV_AHEAD;
		nf_queue_push(&rs->queue, &ev);
	}
	if (gone)
		return GONE;
	if (present) {
		atomic_fetch_add(&rs->hits, 1);
		return PRESENT;
	}
	atomic_fetch_add(&rs->misses, 1);
	if (is_new)
		tell(o, rs, &ev);
	return WAITS;
}

/*
 * A request whose object was not on record when its reader's service died has to be present in
 * every object before it may go on: look at those behind `after`, until one is not.  covered:
 * one of those before could be its own, which one without a file that is known by its inode
 * (a bootstrap over FUSE) never is.
 */
static void pass_on(struct nf_request *r, uint32_t after, bool covered)
{
	struct nf_requests *rs = r->via->core;
	struct nf_object *o;
	enum admitted how;

	while ((o = nf_object_after(&rs->table, after))) {
		after = o->id;
		how = o->ino && !o->has_kernel ? admit(o, r, 0) : OUTSIDE;
		covered |= how == PRESENT;
		if (how == WAITS)	/* a fill may have come before it was in the list */
			nf_requests_satisfied(rs, o);
		nf_object_put(o);
		if (how == WAITS)
			return;
		if (how == GONE) {
			nf_request_answer(r, EIO);
			return;
		}
	}
	nf_request_answer(r, covered ? 0 : EIO);
}

void nf_request_admit_everywhere(struct nf_request *r)
{
	r->unattributed = true;
	pass_on(r, 0, false);
}

void nf_request_admit(struct nf_object *o, struct nf_request *r, int pid)
{
	struct nf_transport *t = r->via;
	enum admitted how = admit(o, r, pid);

	if (how != WAITS) {
		nf_request_answer(r, how == GONE ? EIO : 0);
		return;
	}
	/*
	 * A fill that set its bits between our look and the store saw an empty
	 * list and answered nobody: look again.
	 */
	nf_requests_satisfied(t->core, o);
	if (atomic_load(&t->in_use) > atomic_load(&t->most))
		make_room(t->core);
}

void nf_requests_satisfied(struct nf_requests *rs, struct nf_object *o)
{
	struct nf_request *list, *next;

	if (!atomic_load(&o->pending))
		return;
	list = take_pending(o, is_satisfied, NULL);
	for (; list; list = next) {
		next = list->next;
		if (list->unattributed) {
			atomic_fetch_sub(&rs->pending, 1);
			pass_on(list, o->id, true);
		} else {
			answer_waiter(rs, list, 0);
		}
	}
}

/* -- errors ------------------------------------------------------------------------------------ */

struct range {
	uint64_t off;
	uint64_t end;
};

static bool in_range(struct nf_object *o, struct nf_request *r, const void *arg)
{
	const struct range *range = arg;

	return r->off < range->end && range->off < r->off + r->len &&
	       !nf_object_present(o, r->off, r->len);
}

void nf_requests_fail(struct nf_requests *rs, struct nf_object *o, uint64_t off, uint64_t len, int err)
{
	struct range range = { off, off + len < off ? UINT64_MAX : off + len };

	/* before: who comes between the two is told once more, and not forgotten */
	pthread_mutex_lock(&o->lock);
	nf_object_untell(o, off, len);
	pthread_mutex_unlock(&o->lock);
	/* 0 would let readers on to what is not there */
	answer_all(rs, take_pending(o, in_range, &range), err > 0 ? err : EIO);
	nf_requests_satisfied(rs, o);
}

static bool is_older(struct nf_object *o, struct nf_request *r, const void *arg)
{
	if (atomic_load(&r->t_ns) >= *(const uint64_t *)arg)
		return false;
	nf_object_untell(o, r->off, r->len);	/* whatever Python does for it may be at fault */
	return true;
}

int nf_requests_expire(struct nf_requests *rs, uint64_t age_ns, int err)
{
	uint64_t now = nf_now_ns(), before = now > age_ns ? now - age_ns : 0;
	struct nf_object *o;
	uint32_t id = 0;
	int n = 0;

	/* one object at a time, and no lock of the table while answers are written */
	while ((o = nf_object_after(&rs->table, id))) {
		id = o->id;
		if (atomic_load(&o->pending))
			n += answer_all(rs, take_pending(o, is_older, &before), err > 0 ? err : EIO);
		nf_object_put(o);
	}
	return n;
}

static bool is_any(struct nf_object *o, struct nf_request *r, const void *arg)
{
	(void)o, (void)r, (void)arg;
	return true;
}

int nf_requests_remove(struct nf_requests *rs, uint32_t id)
{
	struct nf_object *o = nf_table_remove(&rs->table, id);

	if (!o)
		return -ENOENT;
	answer_all(rs, take_pending(o, is_any, NULL), EIO);
	/* the caller frees the page map next, and closes the file */
	nf_object_wait_alone(o);
	nf_object_put(o);
	return 0;
}
