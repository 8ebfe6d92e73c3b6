/* The core's life, its loop, the queue to Python, and how a slot is answered. */
#include "core_internal.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define QUEUE_MIN 256
#define WATCH_WAKE 0u
#define WATCH_FANOTIFY 1u
#define WATCH_CACHEFILES 2u

uint64_t nf_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_BOOTTIME, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* -- the queue to Python ----------------------------------------------------------------------- */

static bool grow_queue(struct nf_core *c)
{
	uint32_t cap = c->queue_cap ? c->queue_cap * 2 : QUEUE_MIN, i;
	struct nf_event *bigger = malloc((size_t)cap * sizeof(*bigger));

	if (!bigger)
		return false;
	for (i = 0; i < c->queue_len; i++)
		bigger[i] = c->queue[(c->queue_head + i) % c->queue_cap];
	free(c->queue);
	c->queue = bigger;
	c->queue_head = 0;
	c->queue_cap = cap;
	return true;
}

void nf_push(struct nf_core *c, const struct nf_event *ev)
{
	pthread_mutex_lock(&c->queue_lock);
	/* out of memory: the miss is lost to Python, and its reader gets EIO by nf_expire */
	if (c->queue_len < c->queue_cap || grow_queue(c)) {
		c->queue[(c->queue_head + c->queue_len) % c->queue_cap] = *ev;
		c->queue_len++;
		pthread_cond_signal(&c->queue_filled);
	}
	pthread_mutex_unlock(&c->queue_lock);
}

int nf_core_next(struct nf_core *c, struct nf_event *out, uint32_t max, int timeout_ms)
{
	struct timespec until;
	uint32_t n = 0;
	int rc = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	if (timeout_ms > 0) {
		until.tv_sec += timeout_ms / 1000;
		until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
		if (until.tv_nsec >= 1000000000) {
			until.tv_sec++;
			until.tv_nsec -= 1000000000;
		}
	}
	pthread_mutex_lock(&c->queue_lock);
	while (!c->queue_len && !c->woken && rc == 0)
		rc = timeout_ms < 0 ? pthread_cond_wait(&c->queue_filled, &c->queue_lock)
				    : pthread_cond_timedwait(&c->queue_filled, &c->queue_lock, &until);
	c->woken = false;
	for (; n < max && c->queue_len; n++) {
		out[n] = c->queue[c->queue_head];
		c->queue_head = (c->queue_head + 1) % c->queue_cap;
		c->queue_len--;
	}
	pthread_mutex_unlock(&c->queue_lock);
	return (int)n;
}

static void wake_next(struct nf_core *c)
{
	pthread_mutex_lock(&c->queue_lock);
	c->woken = true;
	pthread_cond_broadcast(&c->queue_filled);
	pthread_mutex_unlock(&c->queue_lock);
}

/* -- answering --------------------------------------------------------------------------------- */

void nf_wake_loop(struct nf_core *c)
{
	uint64_t one = 1;
	ssize_t n = write(c->wake_fd, &one, sizeof(one));

	(void)n;	/* full means that it is awake already */
}

void nf_answer(struct nf_core *c, uint32_t slot, int err)
{
	if (err)
		atomic_fetch_add(&c->denied, 1);
	if (slot < c->journal.nslots)
		nf_fanotify_answer(c, slot, err);
	else
		nf_cachefiles_answer(c, slot);
	if (atomic_exchange(&c->starved, false))
		nf_wake_loop(c);
}

/* -- the loop ---------------------------------------------------------------------------------- */

static void watch_all(struct nf_core *c, struct nf_waiter *w)
{
	nf_waiter_watch(w, WATCH_WAKE, c->wake_fd);
	nf_waiter_watch(w, WATCH_FANOTIFY, __atomic_load_n(&c->fan_fd, __ATOMIC_ACQUIRE));
	nf_waiter_watch(w, WATCH_CACHEFILES, __atomic_load_n(&c->cache_fd, __ATOMIC_ACQUIRE));
}

static void drain(struct nf_core *c)
{
	bool all;

	do {
		atomic_store(&c->starved, false);
		all = c->fan_fd < 0 || nf_fanotify_drain(c);
		all &= c->cache_fd < 0 || nf_cachefiles_drain(c);
		if (all)
			return;
		/* ask to be woken, then look once more: a slot may have come free meanwhile */
		atomic_store(&c->starved, true);
		all = c->fan_fd < 0 || nf_fanotify_drain(c);
		all &= c->cache_fd < 0 || nf_cachefiles_drain(c);
	} while (all && !atomic_exchange(&c->starved, false));
}

static void *loop(void *arg)
{
	struct nf_core *c = arg;
	bool uring = false;
	struct nf_waiter *w = nf_waiter_new(c->no_uring, &uring);
	uint64_t count;
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	if (!w)
		return NULL;
	atomic_store(&c->uses_uring, uring);
	while (!atomic_load(&c->stopping)) {
		watch_all(c, w);
		if (nf_waiter_wait(w) & 1u << WATCH_WAKE) {
			ssize_t n = read(c->wake_fd, &count, sizeof(count));

			(void)n;
		}
		atomic_fetch_add(&c->wakeups, 1);
		if (!atomic_load(&c->stopping))
			drain(c);
	}
	nf_waiter_free(w);
	return NULL;
}

/* -- life -------------------------------------------------------------------------------------- */

struct nf_core *nf_core_new(void *journal, size_t journal_len, uint32_t flags)
{
	struct nf_core *c = calloc(1, sizeof(*c));
	pthread_condattr_t monotonic;

	if (!c)
		return NULL;
	if (nf_journal_open(&c->journal, journal, journal_len) < 0)
		goto fail;
	c->slots = calloc((size_t)c->journal.nslots * 2, sizeof(*c->slots));
	c->kernel_objects = calloc(c->journal.nslots, sizeof(*c->kernel_objects));
	if (!c->slots || !c->kernel_objects)
		goto fail;
	nf_fanotify_occupy(c);
	nf_cachefiles_occupy(c);
	c->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (c->wake_fd < 0)
		goto fail;
	c->fan_fd = -1;
	c->cache_fd = -1;
	c->keeper_fd = -1;
	c->no_uring = flags & NF_NO_URING;
	pthread_rwlock_init(&c->table, NULL);
	pthread_mutex_init(&c->queue_lock, NULL);
	pthread_mutex_init(&c->trace_lock, NULL);
	pthread_mutex_init(&c->fill_lock, NULL);
	pthread_cond_init(&c->filler_free, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&c->queue_filled, &monotonic);
	pthread_condattr_destroy(&monotonic);
	return c;
fail:
	free(c->slots);
	free(c->kernel_objects);
	free(c);
	return NULL;
}

static int attach(struct nf_core *c, int *where, int fd)
{
	if (*where >= 0)
		return -EBUSY;
	__atomic_store_n(where, fd, __ATOMIC_RELEASE);
	nf_wake_loop(c);
	return 0;
}

int nf_core_attach_fanotify(struct nf_core *c, int group_fd)
{
	return attach(c, &c->fan_fd, group_fd);
}

int nf_core_attach_cachefiles(struct nf_core *c, int dev_fd)
{
	return attach(c, &c->cache_fd, dev_fd);
}

int nf_core_keep_by(struct nf_core *c, int socket_fd)
{
	return attach(c, &c->keeper_fd, socket_fd);
}

int nf_core_start(struct nf_core *c)
{
	int rc;

	if (c->started)
		return -EALREADY;
	nf_wake_loop(c);	/* events may have come before anybody watched */
	rc = pthread_create(&c->thread, NULL, loop, c);
	if (rc)
		return -rc;
	c->started = true;
	return 0;
}

int nf_core_stop(struct nf_core *c)
{
	if (!c->started)
		return 0;
	atomic_store(&c->stopping, true);
	nf_wake_loop(c);
	pthread_join(c->thread, NULL);
	c->started = false;
	wake_next(c);
	return 0;
}

/* -- looking in -------------------------------------------------------------------------------- */

static uint64_t oldest(struct nf_core *c)
{
	uint64_t first = 0, t;
	uint32_t i;

	for (i = 0; i < c->journal.nslots * 2; i++) {
		if (i < c->journal.nslots ? !nf_journal_taken(&c->journal, i)
					  : !__atomic_load_n(&c->slots[i].used, __ATOMIC_ACQUIRE))
			continue;
		t = __atomic_load_n(&c->slots[i].t_ns, __ATOMIC_RELAXED);
		if (t && (!first || t < first))
			first = t;
	}
	return first;
}

void nf_core_stats(struct nf_core *c, struct nf_stats *out)
{
	uint64_t first = oldest(c), now = nf_now_ns();

	memset(out, 0, sizeof(*out));
	out->events = atomic_load(&c->events);
	out->hits = atomic_load(&c->hits);
	out->misses = atomic_load(&c->misses);
	out->denied = atomic_load(&c->denied);
	out->pending = atomic_load(&c->pending);
	out->oldest_ns = first && now > first ? now - first : 0;
	out->wakeups = atomic_load(&c->wakeups);
	out->uses_uring = atomic_load(&c->uses_uring);
}

int nf_trace_enable(struct nf_core *c, uint32_t n)
{
	struct nf_trace_entry *room = n ? calloc(n, sizeof(*room)) : NULL;

	if (n && !room)
		return -ENOMEM;
	pthread_mutex_lock(&c->trace_lock);
	free(c->trace);
	c->trace = room;
	c->trace_len = 0;
	__atomic_store_n(&c->trace_cap, n, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&c->trace_lock);
	return 0;
}

int nf_trace_read(struct nf_core *c, struct nf_trace_entry *out, uint32_t max)
{
	uint32_t n;

	pthread_mutex_lock(&c->trace_lock);
	n = c->trace_len < max ? c->trace_len : max;
	memcpy(out, c->trace, n * sizeof(*out));
	memmove(c->trace, c->trace + n, (c->trace_len - n) * sizeof(*out));
	c->trace_len -= n;
	pthread_mutex_unlock(&c->trace_lock);
	return (int)n;
}
