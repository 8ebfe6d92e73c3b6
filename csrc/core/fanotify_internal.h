/*
 * What the fanotify dialect is made of, for its files:
 *   fanotify.c         who reads and answers, take-over
 *   fanotify_ring.c    reads and answers through the ring
 *   fanotify_events.c  events, records, answers as bytes
 */
#ifndef NF_FANOTIFY_INTERNAL_H
#define NF_FANOTIFY_INTERNAL_H

#include <sys/fanotify.h>

#include "fanotify.h"
#include "transport.h"

#define NF_FANOTIFY_EVENT 48u	/* bytes of an event with its range */
#define NF_FANOTIFY_RUN 64u	/* events that one read may bring */

struct nf_fanotify;

/* An answer on its way through the ring; one for each record. */
struct nf_ring_answer {
	struct nf_completion on;
	struct nf_request *request;
	struct fanotify_response response;
};

/* The read that waits in the ring for events, which the kernel writes into records [first, first +
 * room): free ones, which nobody else takes meanwhile. */
struct nf_ring_read {
	struct nf_completion on;
	struct nf_fanotify *of;
	uint32_t first, room;
	int res;
	bool under_way;
	bool came;		/* its result is there */
	bool refused;		/* this kernel does not wait in a read: poll */
};

/* All but `t` is the loop's own. */
struct nf_fanotify {
	struct nf_transport t;
	uint32_t cursor;	/* where to look for free records */
	struct nf_waiter *waiter;	/* NULL: there is no ring */
	struct nf_ring_answer *answers;
	uint32_t under_way;	/* of them */
	struct nf_ring_read read;
};

/* fanotify_events.c */
struct fanotify_event_metadata *nf_fanotify_record(const struct nf_transport *t, uint32_t slot);
/* off and len of an event; false when it has no range (which pre-content events always have) */
bool nf_fanotify_range(const struct fanotify_event_metadata *m, uint64_t *off, uint64_t *len);
/* The next run of free records: *n of them from the returned one; *n is 0 when all are taken. */
uint32_t nf_fanotify_free_run(struct nf_fanotify *f, uint32_t *n);
/* A read into records of a free run has brought `res` bytes, or a negative errno: handle the events,
 * *n of them.  NF_MORE: there may be others. */
enum nf_more nf_fanotify_took(struct nf_fanotify *f, uint32_t first, uint32_t room, int res,
			      uint32_t *n);
uint32_t nf_fanotify_word(int err);
void nf_fanotify_write(int group, struct fanotify_response response);
/* The answer is written: clear the record and release it.  Returns what is to be closed, or -1. */
int nf_fanotify_settled(struct nf_request *r);

/* fanotify_ring.c.  False: there is no room in the ring. */
bool nf_fanotify_answer_by_ring(struct nf_fanotify *f, struct nf_request *r, int err);
/* Handle what the read has brought, and hand in the next. */
enum nf_more nf_fanotify_drain_ring(struct nf_fanotify *f);
void nf_fanotify_arm_ring(struct nf_fanotify *f);
/* Take the read back; what it brought is handled. */
void nf_fanotify_withdraw(struct nf_transport *t);
/* There is no ring any more: the read will bring nothing; what it brought until now is handled. */
void nf_fanotify_take_late(struct nf_fanotify *f);

#endif
