/* What a core is made of, for its two files: core.c (life, loop) and binding.c (core.h). */
#ifndef NF_CORE_INTERNAL_H
#define NF_CORE_INTERNAL_H

#include <pthread.h>

#include "fill.h"
#include "transport.h"

struct nf_core {
	struct nf_requests requests;
	struct nf_fillers fillers;
	struct nf_transport *transports[NF_JOURNAL_AREAS];	/* NULL: the journal has no area for it */
	unsigned int ntransports;
	bool no_uring;
	pthread_t thread;
	bool started;
	atomic_bool stopping;
	bool woken;		/* the loop's own */
	struct nf_watch wake;
	struct nf_waiter *waiter;
	atomic_ullong wakeups;
	atomic_bool uses_uring;
};

/* The areas that a journal of these dialects needs; returns how many. */
unsigned int nf_core_areas(const struct nf_transport_ops *const *kinds, unsigned int n,
			   uint32_t slots, struct nf_area_spec specs[NF_JOURNAL_AREAS]);
/* nf_core_new, with transports of these dialects, in this order. */
struct nf_core *nf_core_make(const struct nf_transport_ops *const *kinds, unsigned int n,
			     void *journal, size_t journal_len, uint32_t flags);

/* The descriptor that a dialect's attach was given is new: the loop must watch it. */
static inline int nf_core_attached(struct nf_core *c, int rc)
{
	if (rc == 0)
		nf_requests_wake_loop(&c->requests);
	return rc;
}

#endif
