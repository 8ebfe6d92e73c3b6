#include "waiter.h"

#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#define ENTRIES 256u
#define RETRY_MS 10
#define FLUSH_TRIES 200u

struct nf_waiter {
	bool uring;
	struct io_uring ring;
	struct nf_watch *armed;
	uint32_t narmed, room;
	struct pollfd *fds;	/* for poll(2): room for all that are armed */
};

struct nf_waiter *nf_waiter_new(bool no_uring)
{
	struct nf_waiter *w = calloc(1, sizeof(*w));

	if (w && !no_uring && io_uring_queue_init(ENTRIES, &w->ring, 0) == 0)
		w->uring = true;
	return w;
}

void nf_waiter_free(struct nf_waiter *w)
{
	if (w->uring)
		io_uring_queue_exit(&w->ring);
	free(w->fds);
	free(w);
}

bool nf_waiter_uses_uring(const struct nf_waiter *w)
{
	return w->uring;
}

struct io_uring_sqe *nf_waiter_sqe(struct nf_waiter *w)
{
	struct io_uring_sqe *sqe = w->uring ? io_uring_get_sqe(&w->ring) : NULL;

	if (!sqe && w->uring && io_uring_submit(&w->ring) > 0)
		sqe = io_uring_get_sqe(&w->ring);
	return sqe;
}

void nf_waiter_close(struct nf_waiter *w, int fd)
{
	struct io_uring_sqe *sqe = nf_waiter_sqe(w);

	if (!sqe) {
		close(fd);
		return;
	}
	io_uring_prep_close(sqe, fd);
	io_uring_sqe_set_data(sqe, NULL);
	if (w->ring.features & IORING_FEAT_CQE_SKIP)	/* Linux 5.17 */
		sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
}

void nf_waiter_cancel(struct nf_waiter *w, struct nf_completion *on)
{
	struct io_uring_sqe *sqe = nf_waiter_sqe(w);

	if (!sqe)
		return;
	io_uring_prep_cancel(sqe, on, 0);
	io_uring_sqe_set_data(sqe, NULL);
}

static void fire(struct nf_watch *watch)
{
	watch->fired = true;
	*watch->ready = true;
}

static void disarm(struct nf_watch *watch)
{
	struct nf_watch **p;

	for (p = &watch->waiter->armed; *p; p = &(*p)->next) {
		if (*p == watch) {
			*p = watch->next;
			break;
		}
	}
	watch->waiter->narmed--;
	watch->armed = false;
	fire(watch);
}

/* An error of the poll itself counts as readable too: the read then says what is wrong. */
static void polled(struct nf_completion *on, int res, uint32_t flags)
{
	(void)res, (void)flags;
	disarm((struct nf_watch *)on);
}

static bool grow(struct nf_waiter *w)
{
	uint32_t room = w->room ? w->room * 2 : 8;
	struct pollfd *fds = realloc(w->fds, room * sizeof(*fds));

	if (!fds)
		return false;
	w->fds = fds;
	w->room = room;
	return true;
}

void nf_waiter_watch(struct nf_waiter *w, struct nf_watch *watch)
{
	struct io_uring_sqe *sqe;

	watch->fired = false;
	if (watch->armed)
		return;
	if (w->narmed == w->room && !grow(w)) {
		*watch->ready = true;	/* the loop comes by again */
		return;
	}
	watch->on.done = polled;
	watch->waiter = w;
	if (w->uring) {
		sqe = nf_waiter_sqe(w);
		if (!sqe) {
			*watch->ready = true;
			return;
		}
		io_uring_prep_poll_add(sqe, watch->fd, POLLIN);
		io_uring_sqe_set_data(sqe, &watch->on);
	}
	watch->armed = true;
	w->narmed++;
	watch->next = w->armed;
	w->armed = watch;
}

/* With a ring the watches stay armed: their SQEs are on their way. */
static void poll_all(struct nf_waiter *w, int timeout_ms)
{
	struct nf_watch *watch, *next;
	uint32_t n = 0;

	for (watch = w->armed; watch; watch = watch->next)
		w->fds[n++] = (struct pollfd){ .fd = watch->fd, .events = POLLIN };
	if (poll(w->fds, n, timeout_ms) <= 0)
		return;
	n = 0;
	for (watch = w->armed; watch; watch = next) {
		next = watch->next;
		if (!w->fds[n++].revents)
			continue;
		if (w->uring)
			fire(watch);
		else
			disarm(watch);
	}
}

static void reap(struct nf_waiter *w)
{
	struct io_uring_cqe *cqe;

	while (io_uring_peek_cqe(&w->ring, &cqe) == 0) {
		struct nf_completion *on = io_uring_cqe_get_data(cqe);
		uint32_t flags = cqe->flags;
		int res = cqe->res;

		io_uring_cqe_seen(&w->ring, cqe);
		if (on)		/* the time-out of a wait on old kernels has none */
			on->done(on, res, flags);
	}
}

void nf_waiter_wait(struct nf_waiter *w, int timeout_ms)
{
	struct __kernel_timespec ts = { timeout_ms / 1000, (timeout_ms % 1000) * 1000000LL };
	struct io_uring_cqe *cqe;
	int rc = 0;

	if (!w->uring) {
		poll_all(w, timeout_ms);
		return;
	}
	if (timeout_ms < 0)
		rc = io_uring_submit_and_wait(&w->ring, 1);
	else if (timeout_ms > 0)
		rc = io_uring_submit_and_wait_timeout(&w->ring, &cqe, 1, &ts, NULL);
	else if (io_uring_sq_ready(&w->ring))
		rc = io_uring_submit(&w->ring);
	if (rc < 0 && rc != -EINTR && rc != -ETIME)
		poll_all(w, timeout_ms ? RETRY_MS : 0);
	reap(w);
}

void nf_waiter_flush(struct nf_waiter *w)
{
	unsigned int i;

	if (!w->uring)
		return;
	for (i = 0; i < FLUSH_TRIES; i++) {
		nf_waiter_wait(w, 0);
		if (!io_uring_sq_ready(&w->ring))
			return;
		if (i)
			usleep(RETRY_MS * 1000);
	}
}
