/* A record of requests, on demand: what was read, when, and whether it was there. */
#ifndef NF_TRACE_H
#define NF_TRACE_H

#include <pthread.h>
#include <stdatomic.h>

#include "base.h"
#include "rafs.h"
#include "core.h"

struct nf_trace {
	pthread_mutex_t lock;
	struct nf_trace_entry *entries;
	atomic_uint cap;	/* 0: nothing is recorded */
	uint32_t len;
};

void nf_trace_init(struct nf_trace *t);
void nf_trace_destroy(struct nf_trace *t);
void nf_trace_add(struct nf_trace *t, const struct nf_trace_entry *e);
/* See nf_trace_enable and nf_trace_read of core.h. */
int nf_trace_room(struct nf_trace *t, uint32_t n);
int nf_trace_take(struct nf_trace *t, struct nf_trace_entry *out, uint32_t max);

#endif
