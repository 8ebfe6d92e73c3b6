/*
 * How the loop waits: an io_uring, or poll(2) where that is forbidden
 * (kernel.io_uring_disabled, seccomp, old kernels).
 *
 * Who waits for a descriptor hands in a watch; a dialect whose waiting is a request of its own
 * (a read, a command of ublk) takes an SQE.  Any number of both.  For the loop's thread only.
 */
#ifndef NF_WAITER_H
#define NF_WAITER_H

#include <stdatomic.h>
#include <stdbool.h>

#include "base.h"

struct io_uring_sqe;
struct nf_waiter;

/* Of one SQE: called by nf_waiter_wait with the result and the flags of its CQE. */
struct nf_completion {
	void (*done)(struct nf_completion *on, int res, uint32_t flags);
};

/* Once: *ready becomes true when fd is readable (or broken), and the watch is free again. */
struct nf_watch {
	struct nf_completion on;
	int fd;
	atomic_bool armed;	/* others may look */
	bool fired;	/* since it was handed in, for who shares `ready` with others */
	bool *ready;
	struct nf_waiter *waiter;
	struct nf_watch *next;
};

struct nf_waiter *nf_waiter_new(bool no_uring);
void nf_waiter_free(struct nf_waiter *w);
bool nf_waiter_uses_uring(const struct nf_waiter *w);

/* Does nothing when it is armed.  It is submitted by the wait itself, which costs no call. */
void nf_waiter_watch(struct nf_waiter *w, struct nf_watch *watch);
/* To be prepared, with a struct nf_completion as its data; submitted by the next wait.  NULL: there
 * is no ring, or no room until then. */
struct io_uring_sqe *nf_waiter_sqe(struct nf_waiter *w);
/* With the next wait, which does not end by it; at once where there is no room. */
void nf_waiter_close(struct nf_waiter *w, int fd);
/* Ask the kernel to end the SQE of `on`, which is done then (ECANCELED, unless it was before). */
void nf_waiter_cancel(struct nf_waiter *w, struct nf_completion *on);
/*
 * Until something is done, at most timeout_ms (-1: for ever; 0: only look).
 * What the kernel did not take (EAGAIN: no memory for a request) is handed in again by the
 * next call; meanwhile the watched descriptors are polled, so nothing is lost by it.
 */
void nf_waiter_wait(struct nf_waiter *w, int timeout_ms);
/* Until the kernel has taken all that was handed in, and done what it can do at once; gives up
 * when it takes nothing for two seconds. */
void nf_waiter_flush(struct nf_waiter *w);

#endif
