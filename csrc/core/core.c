/* The core's life and its loop.  It knows all parts but the dialects, which it is given. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "core_internal.h"

#define BUDGET 256u		/* messages of one transport before the others have their turn */
#define FAILED_RETRY_MS 1000

/* -- the journal ------------------------------------------------------------------------------- */

unsigned int nf_core_areas(const struct nf_transport_ops *const *kinds, unsigned int n,
			   uint32_t slots, struct nf_area_spec specs[NF_JOURNAL_AREAS])
{
	unsigned int i, areas = 0;

	for (i = 0; i < n; i++) {
		const struct nf_transport_ops *ops = kinds[i];
		uint32_t most = ops->slots ? ops->slots : slots;

		if (ops->record_size)
			specs[areas++] = (struct nf_area_spec){ ops->kind, ops->record_size, most };
		if (ops->kept_kind)
			specs[areas++] = (struct nf_area_spec){ ops->kept_kind, ops->kept_size, most };
	}
	return areas;
}

/* -- the loop ---------------------------------------------------------------------------------- */

/* One turn of a transport; true: it has more. */
static bool serve(struct nf_transport *t)
{
	enum nf_more how = t->ops->drain(t, BUDGET);

	if (how == NF_NO_SLOT) {
		/* ask to be woken, then look once more: one may have been released meanwhile */
		atomic_store(&t->starved, true);
		how = t->ops->drain(t, BUDGET);
		if (how != NF_NO_SLOT)
			atomic_store(&t->starved, false);
	}
	t->ready = how == NF_MORE;
	t->failed = how == NF_FAILED;
	return t->ready;
}

static void loop_once(struct nf_core *c)
{
	bool more = false, failed = false;
	unsigned int i;

	for (i = 0; i < c->ntransports; i++) {
		struct nf_transport *t = c->transports[i];

		if (t && t->ready)
			more |= serve(t);
		if (!t || t->ready || atomic_load(&t->starved))
			continue;
		if (t->failed)
			failed = true;
		else
			t->ops->arm(t, c->waiter);
		more |= t->ready;
	}
	nf_waiter_watch(c->waiter, &c->wake);
	nf_waiter_wait(c->waiter, more ? 0 : failed ? FAILED_RETRY_MS : -1);
	if (!more)
		atomic_fetch_add(&c->wakeups, 1);
	if (c->woken) {
		uint64_t count;
		ssize_t n = read(c->requests.wake_fd, &count, sizeof(count));

		(void)n;
		c->woken = false;
	}
	for (i = 0; i < c->ntransports && failed && !more; i++)
		if (c->transports[i])
			c->transports[i]->failed = false;
}

static void *loop(void *arg)
{
	struct nf_core *c = arg;
	unsigned int i;
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	while (!atomic_load(&c->stopping))
		loop_once(c);
	for (i = 0; i < c->ntransports; i++)
		if (c->transports[i] && c->transports[i]->ops->withdraw)
			c->transports[i]->ops->withdraw(c->transports[i]);
	return NULL;
}

int nf_core_start(struct nf_core *c)
{
	int rc;

	if (c->started)
		return -EALREADY;
	/* here, since the thread could tell nobody that there is none */
	c->waiter = nf_waiter_new(c->no_uring);
	if (!c->waiter)
		return -ENOMEM;
	atomic_store(&c->uses_uring, nf_waiter_uses_uring(c->waiter));
	c->wake = (struct nf_watch){ .fd = c->requests.wake_fd, .ready = &c->woken };
	atomic_store(&c->stopping, false);
	rc = pthread_create(&c->thread, NULL, loop, c);
	if (rc) {
		nf_waiter_free(c->waiter);
		return -rc;
	}
	c->started = true;
	return 0;
}

int nf_core_stop(struct nf_core *c)
{
	unsigned int i;

	if (!c->started)
		return 0;
	atomic_store(&c->stopping, true);
	nf_requests_wake_loop(&c->requests);
	pthread_join(c->thread, NULL);
	c->started = false;
	nf_waiter_flush(c->waiter);
	nf_waiter_free(c->waiter);
	for (i = 0; i < c->ntransports; i++) {
		struct nf_transport *t = c->transports[i];

		if (!t)
			continue;
		t->watch.armed = false;
		t->ready = false;
		if (t->ops->rest)
			t->ops->rest(t);
	}
	nf_queue_wake(&c->requests.queue);
	return 0;
}

/* -- life -------------------------------------------------------------------------------------- */

/* NULL without *error: the journal has no area for it, so it cannot be served from this one. */
static struct nf_transport *new_transport(const struct nf_transport_ops *ops,
					  struct nf_requests *core, void *journal, int *error)
{
	struct nf_transport *t = calloc(1, ops->size);

	*error = -ENOMEM;
	if (!t)
		return NULL;
	t->ops = ops;
	t->core = core;
	t->slots = ops->slots;
	atomic_init(&t->fd, -1);
	if (ops->record_size) {
		*error = 0;
		if (nf_journal_area(journal, ops->kind, ops->record_size, &t->area) < 0)
			goto fail;
		t->slots = t->area.slots;
	}
	if (ops->kept_kind &&
	    (nf_journal_area(journal, ops->kept_kind, ops->kept_size, &t->kept) < 0 ||
	     t->kept.slots != t->slots))
		goto fail;
	*error = -ENOMEM;
	atomic_init(&t->most, t->slots - t->slots / 8);
	t->requests = calloc(t->slots, sizeof(*t->requests));
	if (!t->requests || ops->occupy(t) < 0)
		goto fail;
	*error = 0;
	return t;
fail:
	free(t->requests);
	free(t);
	return NULL;
}

static void free_transport(struct nf_transport *t)
{
	uint32_t slot;

	/* descriptors of events, and numbers that were occupied for them */
	for (slot = 0; slot < t->slots; slot++)
		if (atomic_load(&t->requests[slot].used) && t->requests[slot].owns_fd)
			close(t->requests[slot].fd);
	if (t->ops->destroy)
		t->ops->destroy(t);
	free(t->requests);
	free(t);
}

struct nf_core *nf_core_make(const struct nf_transport_ops *const *kinds, unsigned int n,
			     void *journal, size_t journal_len, uint32_t flags)
{
	struct nf_core *c = calloc(1, sizeof(*c));
	struct nf_requests *rs;
	int error = 0;
	unsigned int i;

	if (!c)
		return NULL;
	rs = &c->requests;
	c->no_uring = flags & NF_NO_URING;
	nf_table_init(&rs->table);
	nf_queue_init(&rs->queue);
	nf_trace_init(&rs->trace);
	nf_fillers_init(&c->fillers);
	rs->wake_fd = -1;
	if (nf_journal_check(journal, journal_len) < 0)
		goto fail;
	/* the numbers that are owed an answer are taken before any other descriptor is made */
	c->ntransports = n;
	for (i = 0; i < n; i++) {
		c->transports[i] = new_transport(kinds[i], rs, journal, &error);
		if (error)
			goto fail;
	}
	rs->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (rs->wake_fd < 0)
		goto fail;
	return c;
fail:
	nf_core_free(c);
	return NULL;
}

void nf_core_free(struct nf_core *c)
{
	unsigned int i;

	nf_core_stop(c);
	for (i = 0; i < c->ntransports; i++)
		if (c->transports[i])
			free_transport(c->transports[i]);
	if (c->requests.wake_fd >= 0)
		close(c->requests.wake_fd);
	nf_fillers_destroy(&c->fillers);
	nf_table_destroy(&c->requests.table);
	nf_queue_destroy(&c->requests.queue);
	nf_trace_destroy(&c->requests.trace);
	free(c);
}

/* -- looking in -------------------------------------------------------------------------------- */

static uint64_t oldest(const struct nf_transport *t, uint64_t first)
{
	uint32_t i;
	uint64_t t_ns;

	for (i = 0; i < t->slots; i++) {
		t_ns = atomic_load_explicit(&t->requests[i].t_ns, memory_order_relaxed);
		if (t_ns && (!first || t_ns < first))
			first = t_ns;
	}
	return first;
}

void nf_core_stats(struct nf_core *c, struct nf_stats *out)
{
	struct nf_requests *rs = &c->requests;
	uint64_t first = 0, now = nf_now_ns();
	unsigned int i;

	for (i = 0; i < c->ntransports; i++)
		if (c->transports[i])
			first = oldest(c->transports[i], first);
	memset(out, 0, sizeof(*out));
	out->events = atomic_load(&rs->events);
	out->hits = atomic_load(&rs->hits);
	out->misses = atomic_load(&rs->misses);
	out->denied = atomic_load(&rs->denied);
	out->pending = atomic_load(&rs->pending);
	out->oldest_ns = first && now > first ? now - first : 0;
	out->wakeups = atomic_load(&c->wakeups);
	out->uses_uring = atomic_load(&c->uses_uring);
	out->waits_ns = atomic_load(&rs->waits_ns);
	for (i = 0; i < NF_WAIT_CLASSES; i++)
		out->waits[i] = atomic_load(&rs->waits[i]);
}
