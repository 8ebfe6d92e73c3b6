/*
 * Waiting for the loop's descriptors: io_uring with multishot polls, or poll(2)
 * where io_uring is forbidden (kernel.io_uring_disabled, seccomp, old kernels).
 *
 * Only the waiting goes through the ring.  Events are read and answered by plain
 * calls: neither descriptor has an asynchronous read or write path, so the ring
 * would hand each to a worker thread, which costs more than the call.
 */
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>

#include "core_internal.h"

#define WATCHED 3

struct nf_waiter {
	bool uring;
	struct io_uring ring;
	struct pollfd fds[WATCHED];
};

struct nf_waiter *nf_waiter_new(bool no_uring, bool *uses_uring)
{
	struct nf_waiter *w = calloc(1, sizeof(*w));
	int i;

	if (!w)
		return NULL;
	for (i = 0; i < WATCHED; i++) {
		w->fds[i].fd = -1;
		w->fds[i].events = POLLIN;
	}
	if (!no_uring && io_uring_queue_init(16, &w->ring, 0) == 0)
		w->uring = true;
	*uses_uring = w->uring;
	return w;
}

void nf_waiter_free(struct nf_waiter *w)
{
	if (w->uring)
		io_uring_queue_exit(&w->ring);
	free(w);
}

static int arm(struct nf_waiter *w, unsigned int index)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&w->ring);
	int rc;

	if (!sqe)
		return -EBUSY;
	io_uring_prep_poll_multishot(sqe, w->fds[index].fd, POLLIN);
	io_uring_sqe_set_data64(sqe, index);
	rc = io_uring_submit(&w->ring);
	return rc < 0 ? rc : 0;
}

int nf_waiter_watch(struct nf_waiter *w, unsigned int index, int fd)
{
	if (w->fds[index].fd == fd)
		return 0;
	w->fds[index].fd = fd;
	return w->uring ? arm(w, index) : 0;
}

static unsigned int wait_ring(struct nf_waiter *w)
{
	struct io_uring_cqe *cqe;
	unsigned int ready = 0;

	if (io_uring_wait_cqe(&w->ring, &cqe) < 0)
		return 0;
	do {
		unsigned int index = (unsigned int)io_uring_cqe_get_data64(cqe);
		bool more = cqe->flags & IORING_CQE_F_MORE;

		io_uring_cqe_seen(&w->ring, cqe);
		ready |= 1u << index;
		/* the kernel ends a multishot poll when its queue overflowed */
		if (!more)
			arm(w, index);
	} while (io_uring_peek_cqe(&w->ring, &cqe) == 0);
	return ready;
}

unsigned int nf_waiter_wait(struct nf_waiter *w)
{
	unsigned int ready = 0;
	int i;

	if (w->uring)
		return wait_ring(w);
	if (poll(w->fds, WATCHED, -1) <= 0)
		return 0;
	for (i = 0; i < WATCHED; i++)
		if (w->fds[i].fd >= 0 && w->fds[i].revents)
			ready |= 1u << i;
	return ready;
}
