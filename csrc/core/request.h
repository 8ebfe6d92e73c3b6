/*
 * Requests of the kernel: admitted when they come, answered when their bytes are present,
 * failed, expired.  Knows objects, the queue and the face of a transport; no dialect.
 */
#ifndef NF_REQUEST_H
#define NF_REQUEST_H

#include <stdatomic.h>
#include <stdbool.h>

#include "object.h"
#include "queue.h"
#include "trace.h"

struct nf_transport;

struct nf_request {
	uint64_t off;
	uint64_t len;
	_Atomic uint64_t t_ns;		/* CLOCK_BOOTTIME when it came; 0: not yet, or no deadline */
	struct nf_request *next;	/* in the object's list */
	struct nf_transport *via;
	uint64_t unique;		/* the kernel's name for it, where it has one */
	uint32_t slot;			/* its record in the area of its transport */
	uint32_t object;		/* 0: not known */
	int32_t fd;			/* what it is answered by, where that is a descriptor */
	bool owns_fd;			/* close it after the answer */
	bool unattributed;		/* its object was not on record: must be present in all of them */
	atomic_bool used;
};

/* What requests of all transports share. */
struct nf_requests {
	struct nf_table table;
	struct nf_queue queue;
	struct nf_trace trace;
	int wake_fd;			/* an eventfd that wakes the loop */
	atomic_ullong events, hits, misses, denied, pending;
	atomic_ullong waits_ns, waits[NF_WAIT_CLASSES];
};

uint64_t nf_now_ns(void);
void nf_requests_wake_loop(struct nf_requests *rs);

/* The request of a record that was just read, with nothing filled in; the loop's own. */
struct nf_request *nf_request_take(struct nf_transport *t, uint32_t slot);
/* The record is cleared, and may be used again. */
void nf_request_release(struct nf_request *r);

/* Answer it, or let it wait for its bytes and tell Python.  off and len are set. */
void nf_request_admit(struct nf_object *o, struct nf_request *r, int pid);
/* The same of one whose object is not known: it must be present wherever it could be. */
void nf_request_admit_everywhere(struct nf_request *r);
void nf_request_answer(struct nf_request *r, int err);

/* After pages came: answer who is satisfied by them. */
void nf_requests_satisfied(struct nf_requests *rs, struct nf_object *o);
/* See nf_fail, nf_expire and nf_object_remove of core.h. */
void nf_requests_fail(struct nf_requests *rs, struct nf_object *o, uint64_t off, uint64_t len, int err);
int nf_requests_expire(struct nf_requests *rs, uint64_t age_ns, int err);
int nf_requests_remove(struct nf_requests *rs, uint32_t id);

#endif
