/*
 * fanotify through the ring: a read of events waits there, the answers of a batch and the next read
 * are handed in by one call, and the numbers are closed by the one after it.
 *
 * An answer and its close are never linked: the number would be free before the record is
 * cleared, and a successor would answer whoever has it by then.
 *
 * The read brings events into free records, as read(2) does, so they are on record before anything
 * here runs; the kernel does it in the loop's thread, or not at all when that is being killed.
 */
#include <liburing.h>
#include <unistd.h>

#include "fanotify_internal.h"

#define WITHDRAW_TRIES 200u
#define WITHDRAW_MS 10

/* -- answers ----------------------------------------------------------------------------------- */

static void answered(struct nf_completion *on, int res, uint32_t flags)
{
	struct nf_ring_answer *a = (struct nf_ring_answer *)on;
	struct nf_fanotify *f = (struct nf_fanotify *)a->request->via;
	int fd;

	(void)flags;
	f->under_way--;
	/* what the ring would not do (its errors are the request's, too) is done without it; ENOENT
	 * and what was done already do no harm */
	if (res != sizeof(a->response) && res != -ENOENT)
		nf_fanotify_write(atomic_load(&f->t.fd), a->response);
	fd = nf_fanotify_settled(a->request);
	if (fd >= 0)
		nf_waiter_close(f->waiter, fd);
}

bool nf_fanotify_answer_by_ring(struct nf_fanotify *f, struct nf_request *r, int err)
{
	struct io_uring_sqe *sqe = nf_waiter_sqe(f->waiter);
	struct nf_ring_answer *a = &f->answers[r->slot];

	if (!sqe)
		return false;
	a->on.done = answered;
	a->request = r;
	a->response = (struct fanotify_response){ .fd = r->fd, .response = nf_fanotify_word(err) };
	io_uring_prep_write(sqe, atomic_load(&f->t.fd), &a->response, sizeof(a->response), 0);
	io_uring_sqe_set_data(sqe, &a->on);
	f->under_way++;
	return true;
}

/* -- events ------------------------------------------------------------------------------------ */

static void read_done(struct nf_completion *on, int res, uint32_t flags)
{
	struct nf_ring_read *read = (struct nf_ring_read *)on;

	(void)flags;
	read->res = res;
	read->under_way = false;
	read->came = true;
	read->of->t.ready = true;
}

/* NF_EMPTY: it is handed in, and says when there is something. */
static enum nf_more hand_in(struct nf_fanotify *f)
{
	struct nf_ring_read *read = &f->read;
	struct io_uring_sqe *sqe;

	if (read->under_way)
		return NF_EMPTY;
	read->first = nf_fanotify_free_run(f, &read->room);
	if (!read->room)
		return NF_NO_SLOT;
	sqe = nf_waiter_sqe(f->waiter);
	if (!sqe)
		return NF_MORE;
	read->on.done = read_done;
	read->of = f;
	io_uring_prep_read(sqe, atomic_load(&f->t.fd), nf_fanotify_record(&f->t, read->first),
			   read->room * NF_FANOTIFY_EVENT, 0);
	io_uring_sqe_set_data(sqe, &read->on);
	read->under_way = true;
	return NF_EMPTY;
}

enum nf_more nf_fanotify_drain_ring(struct nf_fanotify *f)
{
	struct nf_ring_read *read = &f->read;
	enum nf_more how = NF_MORE;
	uint32_t n;

	if (read->came) {
		read->came = false;
		if (read->res == -EAGAIN) {
			read->refused = true;
			return NF_MORE;
		}
		how = nf_fanotify_took(f, read->first, read->room, read->res, &n);
	}
	return how == NF_FAILED ? how : hand_in(f);
}

void nf_fanotify_arm_ring(struct nf_fanotify *f)
{
	if (atomic_load(&f->t.fd) >= 0 && !f->read.came && hand_in(f) != NF_EMPTY)
		f->t.ready = true;	/* the loop comes by again */
}

void nf_fanotify_withdraw(struct nf_transport *t)
{
	struct nf_fanotify *f = (struct nf_fanotify *)t;
	struct nf_ring_read *read = &f->read;
	uint32_t tries;

	for (tries = 0; read->under_way && tries < WITHDRAW_TRIES; tries++) {
		nf_waiter_cancel(f->waiter, &read->on);
		nf_waiter_wait(f->waiter, WITHDRAW_MS);
	}
	if (!read->under_way)
		nf_fanotify_take_late(f);
}

void nf_fanotify_take_late(struct nf_fanotify *f)
{
	struct nf_ring_read *read = &f->read;
	uint32_t n;

	if (read->came)
		nf_fanotify_took(f, read->first, read->room, read->res, &n);
	*read = (struct nf_ring_read){ 0 };
}
