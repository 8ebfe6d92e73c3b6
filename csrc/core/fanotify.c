/*
 * The fanotify dialect (reference kernel-transports 2.5, 2.7).
 *
 * An answer is matched by the number of the event's descriptor, first match in
 * the group's list; so a number must not come into use again before its answer
 * is written: answer, clear the record, close, in this order.
 *
 * A record is taken while its event_len is not 0.
 *
 * Where there is a ring, the answers that the loop itself gives (to readers of what is present)
 * go through it, those of a batch of events by one call, and the numbers are closed by the next
 * one.  An answer and its close are never linked: the number would be free before the record is
 * cleared, and a successor would answer whoever has it by then.
 */
#include <fcntl.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "transport.h"
#include "fanotify.h"

/* Debian 12's headers are older than these */
#define INFO_TYPE_RANGE 6
#define DENY_ERRNO(e) (FAN_DENY | ((uint32_t)(e) & 0xff) << 24)

#define EVENT_SIZE 48u
#define RUN_MAX 64u		/* events that one read may bring */
#define EMFILE_PAUSE_US 1000

struct range_info {
	uint8_t type;
	uint8_t pad;
	uint16_t len;
	uint32_t pad2;
	uint64_t offset;
	uint64_t count;
};

/* An answer on its way through the ring; one for each record. */
struct ring_answer {
	struct nf_completion on;
	struct nf_request *request;
	struct fanotify_response response;
};

struct fanotify {
	struct nf_transport t;
	uint32_t cursor;	/* where to look for free records; the loop's own */
	struct nf_waiter *waiter;
	struct ring_answer *answers;
	uint32_t under_way;	/* of them; the loop's own */
};

/* A request's `unique`: of one that a predecessor left, is its number safe until it is answered? */

/* Whose drain this thread is in: the ring is the loop's own. */
static _Thread_local struct fanotify *draining;

static struct fanotify_event_metadata *record(const struct nf_transport *t, uint32_t slot)
{
	return nf_transport_record(t, slot);
}

static void clear(const struct nf_transport *t, uint32_t slot)
{
	t->area.meta[slot].object = 0;
	__atomic_store_n(&record(t, slot)->event_len, 0, __ATOMIC_RELEASE);
}

static uint32_t word_of(int err)
{
	return !err ? FAN_ALLOW : err == ENOSPC ? DENY_ERRNO(ENOSPC) : DENY_ERRNO(EIO);
}

/* The answer is written; *fd is what is to be closed, or -1. */
static void settle_record(struct nf_request *r, int *fd)
{
	*fd = r->owns_fd ? r->fd : -1;
	clear(r->via, r->slot);
	nf_request_release(r);
}

/* Kernels that know no errno in an answer say EINVAL. */
static void deny_plainly(int group, struct fanotify_response response)
{
	ssize_t n;

	response.response = FAN_DENY;
	n = write(group, &response, sizeof(response));
	(void)n;
}

static void ring_answered(struct nf_completion *on, int res, uint32_t flags)
{
	struct ring_answer *a = (struct ring_answer *)on;
	struct fanotify *f = (struct fanotify *)a->request->via;
	struct io_uring_sqe *sqe;
	int fd;

	(void)flags;
	f->under_way--;
	/* what the ring would not do (its errors are the request's, too) is done without it; ENOENT
	 * and what was done already do no harm */
	if (res != sizeof(a->response) && res != -ENOENT) {
		ssize_t n = write(atomic_load(&f->t.fd), &a->response, sizeof(a->response));

		if (n < 0 && errno == EINVAL && a->response.response != FAN_ALLOW)
			deny_plainly(atomic_load(&f->t.fd), a->response);
	}
	settle_record(a->request, &fd);
	if (fd < 0)
		return;
	sqe = nf_waiter_sqe(f->waiter);
	if (!sqe) {
		close(fd);
		return;
	}
	io_uring_prep_close(sqe, fd);
	io_uring_sqe_set_data(sqe, NULL);
}

/* False: there is no ring, or no room in it. */
static bool answer_by_ring(struct fanotify *f, struct nf_request *r, int err)
{
	struct io_uring_sqe *sqe = nf_waiter_sqe(f->waiter);
	struct ring_answer *a = &f->answers[r->slot];

	if (!sqe)
		return false;
	a->on.done = ring_answered;
	a->request = r;
	a->response = (struct fanotify_response){ .fd = r->fd, .response = word_of(err) };
	io_uring_prep_write(sqe, atomic_load(&f->t.fd), &a->response, sizeof(a->response), 0);
	io_uring_sqe_set_data(sqe, &a->on);
	f->under_way++;
	return true;
}

static void answer(struct nf_transport *t, struct nf_request *r, int err)
{
	struct fanotify_response response = { .fd = r->fd, .response = word_of(err) };
	int group = atomic_load(&t->fd), fd;

	if (draining == (struct fanotify *)t && answer_by_ring(draining, r, err))
		return;
	/* ENOENT: the reader was killed, or a predecessor answered before it died */
	if (write(group, &response, sizeof(response)) < 0 && errno == EINVAL && err)
		deny_plainly(group, response);
	settle_record(r, &fd);
	if (fd >= 0)
		close(fd);
}

/* off and len of an event; false when it has no range (which pre-content events always have) */
static bool range_of(const struct fanotify_event_metadata *m, uint64_t *off, uint64_t *len)
{
	const uint8_t *p = (const uint8_t *)m + m->metadata_len;
	const uint8_t *end = (const uint8_t *)m + m->event_len;
	struct range_info info;

	if (m->event_len > EVENT_SIZE || p + sizeof(info) > end)
		return false;
	memcpy(&info, p, sizeof(info));
	if (info.type != INFO_TYPE_RANGE)
		return false;
	*off = info.offset;
	*len = info.count;
	return true;
}

static void handle(struct nf_transport *t, uint32_t slot)
{
	struct fanotify_event_metadata *m = record(t, slot);
	struct nf_request *r;
	struct nf_object *o;
	struct stat st;

	atomic_fetch_add(&t->core->events, 1);
	if (m->fd < 0) {		/* queue overflow: nothing to answer */
		clear(t, slot);
		return;
	}
	r = nf_request_take(t, slot);
	r->fd = m->fd;
	r->owns_fd = true;
	atomic_store(&r->t_ns, nf_now_ns());
	if (!range_of(m, &r->off, &r->len) || fstat(m->fd, &st) < 0) {
		nf_request_answer(r, EIO);
		return;
	}
	o = nf_object_by_inode(&t->core->table, st.st_dev, st.st_ino);
	if (!o) {	/* a file that we do not serve any more: never its holes */
		nf_request_answer(r, EIO);
		return;
	}
	r->object = o->id;
	t->area.meta[slot].t_ns = atomic_load(&r->t_ns);
	__atomic_store_n(&t->area.meta[slot].object, o->id, __ATOMIC_RELEASE);
	nf_request_admit(o, r, m->pid);
	nf_object_put(o);
}

static bool is_free(const struct nf_transport *t, uint32_t slot)
{
	return !atomic_load(&t->requests[slot].used);
}

/* The next run of free records: *n of them from the returned one; *n is 0 when all are taken. */
static uint32_t free_run(struct nf_transport *t, uint32_t most, uint32_t *n)
{
	uint32_t *cursor = &((struct fanotify *)t)->cursor, tried, first;

	for (tried = 0; tried < t->slots; tried++) {
		first = (*cursor + tried) % t->slots;
		if (!is_free(t, first))
			continue;
		*n = 1;
		while (*n < most && first + *n < t->slots && is_free(t, first + *n))
			++*n;
		*cursor = (first + *n) % t->slots;
		return first;
	}
	*n = 0;
	return 0;
}

/*
 * A record that is not 48 bytes long (an overflow event has 24) does not end on
 * a record's border: move what follows there.  Returns the records in use.
 */
static uint32_t align_records(struct nf_transport *t, uint32_t first, size_t bytes, uint32_t room)
{
	uint8_t *at = (uint8_t *)record(t, first);
	uint32_t slots = 0, len;

	while (bytes >= sizeof(struct fanotify_event_metadata) && slots < room) {
		memcpy(&len, at, sizeof(len));
		if (len < sizeof(struct fanotify_event_metadata) || len > bytes)
			break;
		if (len < EVENT_SIZE && bytes > len &&
		    bytes - len <= (size_t)(room - slots - 1) * EVENT_SIZE)
			memmove(at + EVENT_SIZE, at + len, bytes - len);
		bytes -= len;
		at += EVENT_SIZE;
		slots++;
	}
	return slots;
}

/* Is the group at fault?  Else one event was: its file did not open, and the kernel denied it. */
static bool is_ours(int err)
{
	return err == EBADF || err == EINVAL || err == EFAULT;
}

/* Events of one read; NF_MORE: there may be others, *n of which it were. */
static enum nf_more drain_batch(struct nf_transport *t, uint32_t most, uint32_t *n)
{
	uint32_t first, room, i;
	ssize_t got;

	first = free_run(t, most, &room);
	*n = 1;
	if (!room)
		return NF_NO_SLOT;
	got = read(atomic_load(&t->fd), record(t, first), (size_t)room * EVENT_SIZE);
	if (got < 0 && errno == EAGAIN)
		return NF_EMPTY;
	if (got < 0 && is_ours(errno)) {
		nf_queue_push(&t->core->queue, &(struct nf_event){ .type = NF_EV_BROKEN, .fd = -1,
								   .len = (uint64_t)errno });
		return NF_FAILED;
	}
	if (got < 0) {
		/* the kernel has denied that event; others may fare better soon */
		if (errno == EMFILE || errno == ENFILE || errno == ETXTBSY)
			usleep(EMFILE_PAUSE_US);
		return NF_MORE;
	}
	if (!got)
		return NF_EMPTY;
	*n = align_records(t, first, (size_t)got, room);
	for (i = 0; i < *n; i++)
		handle(t, first + i);
	return NF_MORE;		/* who was answered asks again before a wait would be over */
}

static enum nf_more drain(struct nf_transport *t, unsigned int budget)
{
	struct fanotify *f = (struct fanotify *)t;
	enum nf_more how = NF_MORE;
	uint32_t n;

	draining = f->waiter ? f : NULL;
	while (budget && how == NF_MORE) {
		how = drain_batch(t, budget < RUN_MAX ? budget : RUN_MAX, &n);
		if (f->under_way)
			nf_waiter_wait(f->waiter, 0);
		budget -= n < budget ? n : budget;
	}
	draining = NULL;
	return how;
}

static void arm(struct nf_transport *t, struct nf_waiter *w)
{
	((struct fanotify *)t)->waiter = nf_waiter_uses_uring(w) ? w : NULL;
	nf_transport_arm(t, w);
}

/* An answer that the ring did not give is on record still: it is a successor's. */
static void rest(struct nf_transport *t)
{
	struct fanotify *f = (struct fanotify *)t;

	f->waiter = NULL;
	f->under_way = 0;
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
	struct fanotify *f = (struct fanotify *)t;
	uint32_t slot;

	f->answers = calloc(t->slots, sizeof(*f->answers));
	if (!f->answers)
		return -ENOMEM;

	/* a page that is not in memory when the kernel copies an event there, in a process that
	 * is being killed, is an event lost: EFAULT denies its reader */
	mlock(t->area.records, (size_t)t->slots * EVENT_SIZE);
	*t->area.used = t->slots;
	for (slot = 0; slot < t->slots; slot++) {
		struct nf_request *r;

		if (!record(t, slot)->event_len)
			continue;
		r = nf_request_take(t, slot);
		r->fd = record(t, slot)->fd;
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
		if (!r->unique || !range_of(record(t, slot), &r->off, &r->len)) {
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
	free(((struct fanotify *)t)->answers);
}

const struct nf_transport_ops nf_fanotify = {
	.name = "fanotify",
	.kind = NF_AREA_FANOTIFY,
	.record_size = EVENT_SIZE,
	.size = sizeof(struct fanotify),
	.occupy = occupy,
	.settle = settle,
	.arm = arm,
	.drain = drain,
	.answer = answer,
	.rest = rest,
	.destroy = destroy,
};
