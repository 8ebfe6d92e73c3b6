/*
 * A dialect of the kernel's question "make [off, off + len) of this object present, then tell
 * me", and how to add one.
 *
 * A dialect is one C file with one `struct nf_transport_ops`, one line in the list of
 * binding.c (KINDS) and its attach beside the others there (core.h), and, when it has an area of the
 * journal, what the keeper answers in our place (handover/fail_pending.py).  It uses request.h,
 * object.h and queue.h, and no other dialect.  csrc/test/fake.c is the smallest one.
 *
 * What it does with a message of the kernel:
 *   1. read it into a free record of its area of the journal (`area`), so that it is on record
 *      when the read returns (readv(2), when only the head of a message is worth recording);
 *   2. nf_request_take the request of that record, fill in off, len, fd, unique;
 *   3. find the object, note its id in the record's meta, and nf_request_admit it.
 * The core then calls `answer`, at once or from the fill that makes the bytes present: for any
 * request exactly once, from any thread, without a lock.  After it has written the answer, `answer`
 * clears the record, then calls nf_request_release, and only then gives up what the answer
 * names (the number of a descriptor).
 *
 * A dialect whose answers carry the bytes (FUSE, NBD) reads them in `answer` from the object's
 * cache file (nf_object_by_id, o->fill_fd): when err is 0, [off, off + len) is present and stays so.
 * What it cannot read it answers with EIO.
 *
 * The loop (core.c) calls arm and drain, from its one thread.  A transport is `ready` when
 * something may be there to be drained: its watch makes it so.  A dialect with more
 * descriptors than one has more watches, whose `ready` is that of the transport.
 */
#ifndef NF_TRANSPORT_H
#define NF_TRANSPORT_H

#include "journal.h"
#include "request.h"
#include "waiter.h"

enum nf_more {
	NF_EMPTY,	/* nothing is left to be read: arm */
	NF_MORE,	/* the budget is used up: come again, after the others */
	NF_NO_SLOT,	/* there may be more, and no record is free: come when one was released */
	NF_FAILED,	/* the descriptor is at fault, as Python was told: try again in a while */
};

struct nf_transport_ops {
	const char *name;
	uint32_t kind;		/* of its area of the journal (journal.h) */
	uint32_t record_size;	/* of that area; 0: none, the kernel sends again what a successor lacks */
	uint32_t slots;		/* how many requests; 0: as many as the journal is made for */
	uint32_t kept_kind;	/* a second area for what is no request (open objects); 0: none */
	uint32_t kept_size;
	size_t size;		/* of its struct, which begins with a struct nf_transport */

	/* First thing in a new process, when no descriptor is attached: take the requests that the
	 * journal has, and all numbers that the kernel is owed an answer for. -ENOMEM. */
	int (*occupy)(struct nf_transport *t);
	/* Admit what was occupied, before anything new is read.  all_served: every object of before
	 * is there.  Returns how many requests. */
	int (*settle)(struct nf_transport *t, bool all_served);
	/* When it is not ready: ask the waiter to be woken (nf_transport_arm for one descriptor). */
	void (*arm)(struct nf_transport *t, struct nf_waiter *w);
	/* Read and handle at most about `budget` messages; does not block. */
	enum nf_more (*drain)(struct nf_transport *t, unsigned int budget);
	void (*answer)(struct nf_transport *t, struct nf_request *r, int err);
	/* The loop ends, in whose thread this is: take back what waits in the waiter.  May be NULL. */
	void (*withdraw)(struct nf_transport *t);
	/* The waiter goes, after what was handed in to it is done. May be NULL. */
	void (*rest)(struct nf_transport *t);
	/* Nothing is pending any more; free what occupy took.  May be NULL. */
	void (*destroy)(struct nf_transport *t);
};

struct nf_transport {
	const struct nf_transport_ops *ops;
	struct nf_requests *core;
	struct nf_request *requests;	/* `slots` of them, each with the record of its index */
	uint32_t slots;
	struct nf_area area;
	struct nf_area kept;
	atomic_int fd;			/* -1: not attached */
	/* Requests that may wait before who waits longest in the busiest object is denied, so that an
	 * image that hangs leaves records (and descriptors) for the others. */
	atomic_uint most;
	atomic_uint in_use;
	bool ready;			/* the loop's own */
	bool failed;
	atomic_bool starved;		/* the loop waits for a record to be released */
	struct nf_watch watch;
};

static inline void *nf_transport_record(const struct nf_transport *t, uint32_t slot)
{
	return t->area.records + (size_t)slot * t->area.record_size;
}

/* For dialects of one descriptor. */
static inline void nf_transport_arm(struct nf_transport *t, struct nf_waiter *w)
{
	int fd = atomic_load(&t->fd);

	if (fd < 0)
		return;
	t->watch.fd = fd;
	t->watch.ready = &t->ready;
	nf_waiter_watch(w, &t->watch);
}

#endif
