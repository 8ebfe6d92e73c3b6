/* Events for Python, oldest first.  Knows nothing else of the core. */
#ifndef NF_QUEUE_H
#define NF_QUEUE_H

#include <pthread.h>
#include <stdbool.h>

#include "base.h"
#include "rafs.h"
#include "core.h"

struct nf_queue {
	pthread_mutex_t lock;
	pthread_cond_t filled;
	struct nf_event *events;
	uint32_t head, len, cap;
	bool woken;
};

void nf_queue_init(struct nf_queue *q);
void nf_queue_destroy(struct nf_queue *q);
/* False: there is no memory, and the event is lost. */
bool nf_queue_push(struct nf_queue *q, const struct nf_event *ev);
/* See nf_core_next. */
int nf_queue_next(struct nf_queue *q, struct nf_event *out, uint32_t max, int timeout_ms);
/* Let who waits in nf_queue_next return with what there is. */
void nf_queue_wake(struct nf_queue *q);

#endif
