/* What a core is made of, for its two files: core.c (life, loop) and binding.c (core.h). */
#ifndef NF_CORE_INTERNAL_H
#define NF_CORE_INTERNAL_H

#include <pthread.h>

#include "fill.h"
#include "transport.h"

enum nf_kind { NF_FANOTIFY, NF_CACHEFILES, NF_KINDS };

struct nf_core {
	struct nf_requests requests;
	struct nf_fillers fillers;
	struct nf_transport *transports[NF_KINDS];
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

/* The descriptor that a dialect's attach was given is new: the loop must watch it. */
static inline int nf_core_attached(struct nf_core *c, int rc)
{
	if (rc == 0)
		nf_requests_wake_loop(&c->requests);
	return rc;
}

#endif
